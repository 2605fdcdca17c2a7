"""Runs a study: the rows of a table over several seeds, and its report.

  python scripts/ablate.py --study=beta --base=demo_shapes --seeds=3

--study and --base may be files of your own, anywhere: configs/ablations/table.py says
what is in them. --list prints the studies and their rows, --summary=FOLDER the results
of all studies below a folder, in Markdown. Started again, the same command goes on:
finished runs are passed over, one that was cut off resumes, one that failed is tried
again. Runs land in ROOT/runs, the report in ROOT/STUDY/report.html; studies with the
same ROOT share the runs that they have in common. With fewer rows or seeds than
before, what is finished stays in the report; another base or other --set need another
ROOT. --report writes the report of a ROOT again, without them.

Several processes may share a ROOT: --jobs=0/2 here and --jobs=1/2 there take every
second run each. A process uses all GPUs that it sees for each run; to give each GPU of
a host runs of its own, start a process per GPU:

  CUDA_VISIBLE_DEVICES=0 python scripts/ablate.py --study=beta --jobs=0/2 &
  CUDA_VISIBLE_DEVICES=1 python scripts/ablate.py --study=beta --jobs=1/2

The exit code is 1 if a run failed.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import shlex

from absl import app, flags

from gfl_jax import launch

_STUDY = flags.DEFINE_string(
  'study', None, 'A study, --list shows them; or a file of your own, FILE.py.'
)
_BASE = flags.DEFINE_string(
  'base', 'demo_shapes', 'A config in configs/, or FILE.py of your own.'
)
_SEEDS = flags.DEFINE_string('seeds', '3', 'How many (3: 0,1,2), or a list: 0,4,7.')
_ROWS = flags.DEFINE_string('rows', '*', "Only these: '2,2.5', 'atss_*'.")
_SET = flags.DEFINE_multi_string('set', [], 'FIELD=VALUE for the base, as epochs=4')
_ROOT = flags.DEFINE_string(
  'root', None, 'The results folder; runs/ablations/BASE if not given.'
)
_JOBS = flags.DEFINE_string(
  'jobs',
  '0/1',
  'INDEX/COUNT: every COUNT-th run, from INDEX on. One process for each host, or for'
  ' each GPU with CUDA_VISIBLE_DEVICES=0, 1, ... set.',
)
_REPORT = flags.DEFINE_bool(
  'report',
  False,
  'Run nothing, write the report of all recorded runs again, whatever code made them,'
  ' whatever --set they had.',
)
_SUMMARY = flags.DEFINE_string(
  'summary', None, 'Print tables of all studies below this folder, and run nothing.'
)
_LIST = flags.DEFINE_bool('list', False, 'Print the studies and their rows.')


def main(argv: list[str]) -> int:
  """Checks the flags and runs; returns the exit code."""
  if argv[1:]:
    raise app.UsageError(f'unknown arguments: {argv[1:]}')
  if _LIST.value:
    _print_studies()
    return 0
  if _SUMMARY.value is not None:
    from gfl_jax.reports.study import page

    print(page.summary_table(_SUMMARY.value), end='')
    return 0
  if _STUDY.value is None:
    raise app.UsageError('--study=NAME is needed; --list shows the studies')
  from gfl_jax.studies import options, runner

  asked = _study()
  launch.use_compilation_cache(asked.root)
  if _REPORT.value:
    print(runner.write_report(asked))
    return 0
  failed = runner.run_study(asked, job=options.parse_jobs(_JOBS.value))
  if failed:
    print(f'\n{len(failed)} failed:', *failed, sep='\n  ')
  return 1 if failed else 0


def _study():
  from configs.ablations import table
  from gfl_jax.studies import options, plan, record

  module = table.load_study(_STUDY.value)
  name, base = table.stem(_STUDY.value), table.resolved(_BASE.value)
  table.base_config(base)  # an unknown one is an error here
  root = pathlib.Path(_ROOT.value or f'runs/ablations/{table.stem(base)}')
  overrides = tuple(_SET.value)
  if _REPORT.value:  # what is not given is as it was
    recorded = record.read(root / name)
    base = base if _BASE.present else recorded['base']
    overrides = overrides if _SET.present else tuple(recorded['overrides'])
  return plan.Study(
    name=name,
    file=table.file_of(_STUDY.value),
    module=module,
    chosen=options.select_rows(module.ROWS, _ROWS.value),
    base=base,
    make_base=lambda: table.base_config(base),
    overrides=overrides,
    seeds=options.parse_seeds(_SEEDS.value),
    root=root,
    command=_command(),
  )


def _command() -> str:
  """The command of the study, whatever share, rows and seeds of it run here."""
  from configs.ablations import table

  root = [f'--root={_ROOT.value}'] if _ROOT.present else []
  return shlex.join(
    [
      'python',
      'scripts/ablate.py',
      f'--study={table.resolved(_STUDY.value)}',
      f'--base={table.resolved(_BASE.value)}',
      *root,
      *(f'--set={text}' for text in _SET.value),
    ]
  )


def _print_studies() -> None:
  from configs.ablations import table

  for name in table.studies():
    module = table.load_study(name)
    where = f'table {module.TABLE} of the paper' if module.TABLE else 'our own'
    print(f'{name}: {module.TITLE} ({where})\n  {module.QUESTION}')
    for row, about in module.ROWS.items():
      paper = f"paper's AP {about.paper[0]}" if about.paper else ''
      is_baseline = row in (module.BASELINE, about.baseline)
      print(f'  {row:24}{paper:18}{about.title}{" (baseline)" if is_baseline else ""}')
    print()
  print(f'bases: {", ".join(table.bases())}')


if __name__ == '__main__':
  launch.run(main)
