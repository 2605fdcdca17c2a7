#!/bin/sh
# Trains, and starts scripts/train.py again as long as that may help: where it ended for
# a transient error (status 75), was killed (137), or was aborted by jax because the first
# of several processes is gone (134). A stop by SIGTERM or Ctrl-C, or another error, ends
# this, too; so do three starts in a row without a checkpoint of a new step.
#
#   sh scripts/keep_training.sh --config=FILE --workdir=DIR ...
#
# Python is $PYTHON, else that of .venv, else python3.
here=$(dirname "$0")
python=${PYTHON:-$here/../.venv/bin/python}
[ -n "$PYTHON" ] || [ -x "$python" ] || python=python3

workdir=
before=
for argument; do
  case $argument in --workdir=* | -workdir=*) workdir=${argument#*=} ;; esac
  case $before in --workdir | -workdir) workdir=$argument ;; esac
  before=$argument
done
case $workdir in '~' | '~/'*) workdir=$HOME${workdir#'~'} ;; esac

newest_step() {
  ls "$workdir/checkpoints" 2> /dev/null | grep -E '^[0-9]+$' | sort -n | tail -n 1
}

starts=0
step=$(newest_step)
until "$python" "$here/train.py" "$@"; do
  status=$?
  case $status in
    75 | 134 | 137) ;;
    *) exit $status ;;
  esac
  starts=$((starts + 1))
  if [ "$(newest_step)" != "$step" ]; then
    starts=0
    step=$(newest_step)
  fi
  if [ $starts -ge 3 ]; then
    echo "Not starting again after status $status: $starts starts in a row have stored" \
      "no new step in $workdir/checkpoints (the newest is ${step:-none})." >&2
    exit $status
  fi
  echo "Starting again after status $status." >&2
  sleep 5
done
