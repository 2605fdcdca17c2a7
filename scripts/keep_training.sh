#!/bin/sh
# Trains, and starts scripts/train.py again after an error that another start may solve: a
# transient error (status 75), a kill (137), or an abort by jax because the first of several
# processes ended (134). It stops after SIGTERM, Ctrl-C or any other error, and after three
# starts in a row that save no checkpoint of a new step.
#
#   sh scripts/keep_training.sh --config=FILE --workdir=DIR ...
#
# Python is $PYTHON if it is set, else that of .venv, else python3.
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
    echo "Not starting again after status $status: $starts starts in a row have saved" \
      "no new step in $workdir/checkpoints (the newest is ${step:-none})." >&2
    exit $status
  fi
  echo "Starting again after status $status." >&2
  sleep 5
done
