"""study.json: what a study is, and what became of its runs."""

import collections
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gfl_jax.errors import UserError
from gfl_jax.evaluation.coco_metrics import METRICS
from gfl_jax.files import atomic_write, lock
from gfl_jax.studies import options, source_digests
from gfl_jax.studies.plan import Study
from gfl_jax.studies.runs import Run, environment, outcome, read_record

Runs = Mapping[tuple[str, int], Run]  # by row and seed


def write(study: Study, asked: Runs) -> None:
  """Writes study.json: the runs asked for, and the finished ones that it had before.

  Several processes may write it; each writes all that is there.

  Raises:
    ValueError: it is of another base, other overrides, or rows that have changed.
  """
  with lock(study.folder / '.lock', wait=True):
    runs = {**_finished_before(study, asked), **asked}
    names = [name for name in study.rows if any(name == row for row, _ in runs)]
    rows = [_row(study, name, names, runs) for name in names]
    content = {
      'study': study.name,
      'title': study.title,
      'table': study.table,
      'question': study.question,
      'notes': study.notes,
      'base': study.base,
      'overrides': list(study.overrides),
      'command': _command(study, names, {seed for _, seed in runs}),
      'baseline': study.baseline if study.baseline in names else names[0],
      **_totals(study.root, rows),
      'rows': rows,
    }
    atomic_write(_file(study), json.dumps(content, indent=2))


def check(study: Study, asked: Runs) -> None:
  """Raises the ValueError of `write`; reads study.json alone."""
  _finished_before(study, asked)


def refresh(study: Study) -> None:
  """Writes study.json anew from the folders of its runs, whatever code made them.

  Its rows keep their words; with which row each is compared is the table's to say. If
  finished runs are not there any more, what it has of all runs stays.

  Raises:
    ValueError: there is none; it is of another base, or of other overrides.
  """
  read(study.folder)  # without one, the lock's folder is not made either
  with lock(study.folder / '.lock', wait=True):
    content = read(study.folder)
    _check_same(study, content)
    names = [row['name'] for row in content['rows']]
    for row in content['rows']:
      if row['name'] in study.rows:
        row['baseline'] = _baseline(study, row['name'], names)
    runs = [run for row in content['rows'] for run in row['runs']]
    finished = [run for run in runs if run['status'] == 'finished']
    if all((study.root / run['folder']).exists() for run in finished):
      for run in runs:
        run |= outcome(study.root / run['folder'])
      content |= _totals(study.root, content['rows'])
    atomic_write(_file(study), json.dumps(content, indent=2))


def read(folder: Path) -> dict[str, Any]:
  """The content of a study's study.json.

  Args:
    folder: of the study, below its root.

  Raises:
    ValueError: there is none.
  """
  file = folder / 'study.json'
  if not file.exists():
    raise UserError(
      f'there is no {file}: give the --root, and perhaps the --base, that the study'
      ' was run with'
    )
  return json.loads(file.read_text())


def missing_baselines(study: Study) -> list[str]:
  """What study.json compares with other rows than the table does, in words."""
  content = read(study.folder)
  names = [row['name'] for row in content['rows']]
  instead = content['baseline']
  lines = []
  if study.baseline not in names and len(names) > 1:
    lines.append(
      f"The table's baseline ({study.baseline}) is not among the rows: compared with"
      f' {instead}.'
    )
  for name in names:
    own = study.rows[name].baseline
    if own not in (None, study.baseline, *names) and name != instead:
      lines.append(
        f"{name}'s own baseline ({own}) is not among the rows: compared with {instead}."
      )
  return lines


def _file(study: Study) -> Path:
  return study.folder / 'study.json'


def _check_same(study: Study, content: dict[str, Any]) -> None:
  """A study.json without any recorded run may become of another base."""
  runs = [run for row in content['rows'] for run in row['runs']]
  there = content['base'], sorted(content['overrides'])
  if there == (study.base, sorted(study.overrides)) or not any(
    run['status'] != 'missing' or read_record(study.root / run['folder'])
    for run in runs
  ):
    return
  raise UserError(
    f'{_file(study)} has another base or other --set than this; it was made by\n'
    f'  {content["command"]}\n'
    'give the same, or another --root'
  )


def _finished_before(study: Study, asked: Runs) -> dict[tuple[str, int], Run]:
  """The finished runs of study.json that are not among those asked for."""
  if not _file(study).exists():
    return {}
  content = read(study.folder)
  _check_same(study, content)
  found = {}
  for row in content['rows']:
    for entry in row['runs']:
      if entry['status'] != 'finished':
        continue
      where = row['name'], entry['seed']
      known = row['name'] in study.rows
      run = asked.get(where) or (study.run(*where) if known else None)
      if run is None or not entry['folder'].endswith(run.key):
        raise UserError(
          f'{_file(study)} has row {where[0]!r}, seed {where[1]} by another config'
          f' ({entry["folder"]}): the row or the base has changed since. Give another'
          ' --root'
        )
      if where not in asked and run.metrics:
        found[where] = run
  return found


def _row(study: Study, name: str, names: list[str], runs: Runs) -> dict[str, Any]:
  row = study.rows[name]
  return {
    'name': name,
    'title': row.title,
    'paper': dict(zip(METRICS, row.paper, strict=False)) if row.paper else None,
    'note': row.note,
    'baseline': _baseline(study, name, names),
    'runs': [
      {
        'seed': seed,
        'folder': run.folder.relative_to(study.root).as_posix(),
        'command': study.run_command(name, run),
        **outcome(run.folder),
      }
      for (row_name, seed), run in sorted(runs.items(), key=lambda item: item[0][1])
      if row_name == name
    ],
  }


def _baseline(study: Study, name: str, names: list[str]) -> str | None:
  """Of a row, by name; None (the study's) if its own is not among the rows."""
  baseline = study.rows[name].baseline
  return baseline if baseline in names else None


def _totals(root: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
  """What made the runs, and what they cost."""
  runs = [run for row in rows for run in row['runs']]
  records = [read_record(root / run['folder']) for run in runs]
  finished = [run for run in runs if run['status'] == 'finished']
  machines = [environment(root / run['folder']) for run in finished]
  counts = collections.Counter(
    json.dumps({name: machine[name] for name in ('devices', 'versions', 'git')})
    for machine in machines
  )
  first = machines[0] if machines else {}
  codes = sorted({run['code'] for run in finished}) or [
    source_digests.digest(source_digests.current())
  ]
  return {
    'code': ', '.join(sorted(codes)),
    'git': first.get('git', ''),
    'environment': first,
    'environments': [{**json.loads(key), 'runs': n} for key, n in counts.items()],
    'compiling': sum(record.get('compiling', 0.0) for record in records),
    'seconds': sum(record.get('seconds', 0.0) for record in records),
  }


def _command(study: Study, names: list[str], seeds: set[int]) -> str:
  """The command that makes all of study.json, however many made it."""
  flags = [f'--seeds={options.format_seeds(sorted(seeds))}']
  if len(names) < len(study.rows):
    flags.append(f'--rows={",".join(names)}')
  return f'{study.command} {shlex.join(flags)}'
