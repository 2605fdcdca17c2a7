"""Runs a study: the rows of a table over several seeds, and writes its report.

  python scripts/ablate.py --study=beta --base=demo_shapes --seeds=3

--list prints the studies and their rows. --study and --base may also be files of your
own: configs/ablations/table.py says what they hold. --summary=FOLDER prints the results
of all studies below a folder, in Markdown.

The same command continues an interrupted study: it skips finished runs, resumes an
interrupted one, and starts a failed one again. Runs land in ROOT/runs, the report in
ROOT/STUDY/report.html. Studies with the same ROOT use each other's runs where these
have the same config and seed. The report also covers finished runs of other rows and
seeds than those of this command; another base or another --set needs another ROOT.
--report writes the report of a ROOT again without running anything.

Each row compiles its own training step. Runs that differ in the seed alone load it from
the compilation cache beside ROOT.

Several processes can work on one study: --jobs=0/2 in one and --jobs=1/2 in another run
every second run each. A process uses all GPUs that it sees. To run one process per GPU:

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
  'study', None, 'Name of a study (--list prints them), or a FILE.py of your own.'
)
_BASE = flags.DEFINE_string(
  'base', 'demo_shapes', 'Name of a config in configs/, or a FILE.py of your own.'
)
_SEEDS = flags.DEFINE_string('seeds', '3', 'How many (3: 0,1,2), or a list: 0,4,7.')
_ROWS = flags.DEFINE_string('rows', '*', "Only these rows: '2,2.5', 'atss_*'.")
_SET = flags.DEFINE_multi_string('set', [], 'FIELD=VALUE in the base, as epochs=4.')
_ROOT = flags.DEFINE_string(
  'root', None, 'The results folder; by default runs/ablations/BASE.'
)
_JOBS = flags.DEFINE_string(
  'jobs', '0/1', 'INDEX/COUNT: only every COUNT-th run, from number INDEX on.'
)
_REPORT = flags.DEFINE_bool(
  'report', False, 'Run nothing; write the report of all recorded runs again.'
)
_SUMMARY = flags.DEFINE_string(
  'summary', None, 'Run nothing; print tables of all studies below this folder.'
)
_LIST = flags.DEFINE_bool(
  'list', False, 'Print the rows of --study, or of all studies.'
)


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
    raise app.UsageError('give --study=NAME; --list prints the studies')
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
  table.base_config(base)  # an error here if it is unknown
  root = pathlib.Path(_ROOT.value or f'runs/ablations/{table.stem(base)}')
  overrides = tuple(_SET.value)
  if _REPORT.value:  # by default the base and the overrides that the runs had
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
  """The command of the study without --jobs, --rows and --seeds."""
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

  for name in [_STUDY.value] if _STUDY.value else table.studies():
    module = table.load_study(name)
    where = f'table {module.TABLE} of the paper' if module.TABLE else 'our own'
    print(f'{table.stem(name)}: {module.TITLE} ({where})\n  {module.QUESTION}')
    for row, about in module.ROWS.items():
      paper = f"paper's AP {about.paper[0]}" if about.paper else ''
      is_baseline = row in (module.BASELINE, about.baseline)
      print(f'  {row:24}{paper:18}{about.title}{" (baseline)" if is_baseline else ""}')
    print()
  print(f'bases: {", ".join(table.bases())}')


if __name__ == '__main__':
  launch.run(main)
