"""Pages about runs and studies, made from the files in their folders alone."""

import contextlib
import os
import sys


def _import_matplotlib() -> None:
  """Imports it even if MPLBACKEND names a backend that is not installed here.

  A notebook hands its own to the programs that it starts; with an unknown one the
  import of matplotlib fails. Figures go to files and need none of them. One that is
  known stays what it is for the other figures of this process.
  """
  if 'matplotlib' in sys.modules or 'MPLBACKEND' not in os.environ:
    return
  backend = os.environ.pop('MPLBACKEND')
  try:
    import matplotlib
  finally:
    os.environ['MPLBACKEND'] = backend
  with contextlib.suppress(ValueError):
    matplotlib.rcParams['backend'] = backend


_import_matplotlib()
