#!/bin/sh
# Trains, and starts scripts/train.py again as long as that may help: where it ended for
# what may be gone (status 75), was killed (137), or was aborted by jax because the first
# of several processes is gone (134). A stop by SIGTERM or Ctrl-C, or an error in the
# config, ends this, too.
#
#   sh scripts/keep_training.sh --config=FILE --workdir=DIR ...
#
# Python is that of .venv, or $PYTHON.
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-.venv/bin/python}
until "$python" scripts/train.py "$@"; do
  status=$?
  case $status in
    75 | 134 | 137) echo "Starting again after status $status." >&2; sleep 5 ;;
    *) exit $status ;;
  esac
done
