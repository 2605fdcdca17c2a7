"""The pages of runs and studies, made only from the files in their folders."""

import contextlib
import os
import sys

# A notebook sets MPLBACKEND for the programs that it starts, and matplotlib cannot be
# imported if it names a backend that is not installed. These figures go to files and
# need none. A known backend stays set for the other figures of the process.
if 'matplotlib' not in sys.modules and 'MPLBACKEND' in os.environ:
  _backend = os.environ.pop('MPLBACKEND')
  try:
    import matplotlib
  finally:
    os.environ['MPLBACKEND'] = _backend
  with contextlib.suppress(ValueError):
    matplotlib.rcParams['backend'] = _backend
