"""study.json: the texts of a study, and the state and numbers of its runs."""

import collections
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gfl_jax.errors import UserError
from gfl_jax.evaluation.coco_metrics import METRICS
from gfl_jax.files import atomic_write, lock, read_json
from gfl_jax.studies import options, source_digests
from gfl_jax.studies.plan import Study
from gfl_jax.studies.runs import RECORD, Run, outcome

_TEXTS = ('TITLE', 'TABLE', 'QUESTION', 'NOTES')
Runs = Mapping[tuple[str, int], Run]  # by row and seed


def write(study: Study, asked: Runs) -> None:
  """Writes study.json: the runs asked for, and finished ones that it already holds.

  Several processes may write it; each writes the state of all runs.

  Raises:
    ValueError: as `finished_runs`.
  """
  with lock(study.folder / '.lock', wait=True):
    runs = {**finished_runs(study, asked), **asked}
    names = [name for name in study.module.ROWS if name in {row for row, _ in runs}]
    flags = [f'--seeds={options.format_seeds(sorted({seed for _, seed in runs}))}']
    if len(names) < len(study.module.ROWS):
      flags.append(f'--rows={",".join(names)}')
    baseline = study.module.BASELINE
    content = {
      'study': study.name,
      **{name.lower(): getattr(study.module, name) for name in _TEXTS},
      'base': study.base,
      'overrides': list(study.overrides),
      # The one command that makes all of it, which several may have made.
      'command': f'{study.command} {shlex.join(flags)}',
      'baseline': baseline if baseline in names else names[0],
      'rows': [_row(study, name, runs) for name in names],
    }
    _save(study, content)


def finished_runs(study: Study, asked: Runs) -> dict[tuple[str, int], Run]:
  """The finished runs of a study.json, whether they are asked for or not.

  Raises:
    ValueError: the file is of another base, other overrides, or rows that have changed
      since.
  """
  if not (content := read_json(_file(study))):
    return {}
  _check_same(study, content)
  found = {}
  for name, entry in _entries(content):
    if entry['status'] != 'finished':
      continue
    where = name, entry['seed']
    run = asked.get(where) or (study.run(*where) if name in study.module.ROWS else None)
    if run is None or not entry['folder'].endswith(run.key):
      raise UserError(
        f'{_file(study)} has row {name!r}, seed {entry["seed"]} by another config'
        f' ({entry["folder"]}): the row or the base has changed since. Give another'
        ' --root'
      )
    if run.metrics:
      found[where] = run
  return found


def refresh(study: Study) -> None:
  """Writes study.json again from the folders of its runs, whatever code made them.

  Titles and notes stay as they are; the baseline of each row is the table's. If the
  folder of a finished run is missing, the numbers of all runs stay as they are. The
  caller holds the lock of the study's folder.

  Raises:
    ValueError: there is no study.json, or it is of another base or other overrides.
  """
  content = read(study.folder)
  _check_same(study, content)
  _save(study, content)


def read(folder: Path) -> dict[str, Any]:
  """The content of the study.json in a study's folder.

  Raises:
    ValueError: there is none.
  """
  if content := read_json(folder / 'study.json'):
    return content
  raise UserError(
    f'there is no {folder / "study.json"}: give the --root, and the --base if there'
    ' was one, that the study was run with'
  )


def missing_baselines(study: Study) -> list[str]:
  """A line for each baseline of the table that study.json has no row of."""
  content = read(study.folder)
  names, instead = [row['name'] for row in content['rows']], content['baseline']
  compared = collections.defaultdict(list)
  for name in names:
    baseline = study.module.ROWS[name].baseline or study.module.BASELINE
    if baseline not in names and name != instead:
      compared[baseline].append(name)
  return [
    f'The baseline {baseline!r} is not among the rows. Compared with {instead!r}'
    f' instead: {", ".join(rows)}.'
    for baseline, rows in compared.items()
  ]


def _file(study: Study) -> Path:
  return study.folder / 'study.json'


def _entries(content: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
  """(name of the row, its entry in study.json) of each run."""
  return [(row['name'], run) for row in content['rows'] for run in row['runs']]


def _check_same(study: Study, content: dict[str, Any]) -> None:
  """Raises a ValueError if study.json has runs of another base or other overrides."""
  stored = content['base'], sorted(content['overrides'])
  if stored != (study.base, sorted(study.overrides)) and any(
    run['status'] != 'missing' or read_json(study.root / run['folder'] / RECORD)
    for _, run in _entries(content)
  ):
    raise UserError(
      f'{_file(study)} has another base or other --set than this command; it was made'
      f' by\n  {content["command"]}\ngive the same, or another --root'
    )


def _row(study: Study, name: str, runs: Runs) -> dict[str, Any]:
  """A row without the state of its runs."""
  row = study.module.ROWS[name]
  return {
    'name': name,
    'title': row.title,
    'paper': dict(zip(METRICS, row.paper, strict=False)) if row.paper else None,
    'note': row.note,
    'runs': [
      {
        'seed': seed,
        'folder': run.folder.relative_to(study.root).as_posix(),
        'command': study.run_command(name, run),
      }
      for (row_name, seed), run in sorted(runs.items(), key=lambda item: item[0][1])
      if row_name == name
    ],
  }


def _save(study: Study, content: dict[str, Any]) -> None:
  """Writes study.json, with the state of its runs as their folders have it now."""
  names = [row['name'] for row in content['rows']]
  for row in content['rows']:
    if row['name'] in study.module.ROWS:
      own = study.module.ROWS[row['name']].baseline
      row['baseline'] = own if own in names else None  # None: the study's
  folders = [(study.root / run['folder'], run) for _, run in _entries(content)]
  if all(f.exists() for f, run in folders if run.get('status') == 'finished'):
    for folder, run in folders:
      run |= outcome(folder)
    content |= _totals(folders)
  atomic_write(_file(study), json.dumps(content, indent=2))


def _totals(folders: list[tuple[Path, dict[str, Any]]]) -> dict[str, Any]:
  """Code, machines and time of all runs, given as (folder, entry in study.json)."""
  records = [read_json(folder / RECORD) for folder, _ in folders]
  finished = [(f, run) for f, run in folders if run['status'] == 'finished']
  machines = [read_json(folder / 'env.json') for folder, _ in finished]
  counts = collections.Counter(
    json.dumps({name: machine[name] for name in ('devices', 'versions', 'git')})
    for machine in machines
  )
  first = machines[0] if machines else {}
  current = source_digests.digest(source_digests.current())
  return {
    'code': ', '.join(sorted({run['code'] for _, run in finished} or {current})),
    'git': first.get('git', ''),
    'environment': first,
    'environments': [{**json.loads(key), 'runs': n} for key, n in counts.items()],
    'compiling': sum(record.get('compiling', 0.0) for record in records),
    'seconds': sum(record.get('seconds', 0.0) for record in records),
  }
