"""What a study is asked to run: the config and the command of each of its runs."""

import dataclasses
import functools
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from gfl_jax.errors import UserError
from gfl_jax.reports import tables
from gfl_jax.studies import options
from gfl_jax.studies.runs import Run
from gfl_jax.training import config_checks


@dataclasses.dataclass(frozen=True)
class Study:
  """What is to be run.

  Attributes:
    name: of the study.
    file: of its table, as --config of one of its runs has it.
    title, table, question, notes: for its report.
    rows: all of its table by name; each has `title`, `paper` (AP, AP50, ... in percent,
      or None), `note`, `baseline` (a row's name, or None: the study's) and
      `change(config)`. See configs/ablations/table.py.
    chosen: names of the rows to be run.
    baseline: the row that others are compared with.
    base: the config that the rows change: its name, or the path of its file.
    make_base: makes that config.
    overrides: 'FIELD=VALUE' each, set in the base before a row changes it.
    seeds: one run of each chosen row for each.
    root: the results folder.
    command: that runs the study, but for its rows and seeds; for its report.
  """

  name: str
  file: str
  title: str
  table: str
  question: str
  notes: str
  rows: Mapping[str, Any]
  chosen: Sequence[str]
  baseline: str
  base: str
  make_base: Callable[[], ConfigDict]
  overrides: Sequence[str]
  seeds: Sequence[int]
  root: Path
  command: str

  @property
  def folder(self) -> Path:
    """Where study.json and the report are."""
    return self.root / self.name

  def config(self, row: str, seed: int) -> ConfigDict:
    """The config of a run.

    Raises:
      ValueError: it cannot run, or the row sets what an override sets; names the row.
    """
    config = self.make_base()
    options.override(config, self.overrides)
    try:
      self.rows[row].change(config)
      self._check_overrides(row, config)
      config.seed = seed
      config_checks.check_config(config)
    except ValueError as error:
      raise UserError(f'row {row!r} on base {self.base!r}: {error}') from error
    return config.lock()

  def run(self, row: str, seed: int) -> Run:
    """One run; as `config`."""
    return Run(self.root, f'{self.name}.{row}', self.config(row, seed))

  def runs(self) -> dict[tuple[str, int], Run]:
    """What is asked for, by row and seed: seeds outside, so that all rows exist early.

    Raises:
      ValueError: as `config`.
    """
    return {
      (row, seed): self.run(row, seed) for seed in self.seeds for row in self.chosen
    }

  def run_command(self, row: str, run: Run) -> str:
    """The command that makes this run alone: exact, whatever the study overrode."""
    plain = self.make_base()
    self.rows[row].change(plain)
    before, now = _leaves(plain), _leaves(run.config)
    changed = [
      f'--config.{name}={value}' for name, value in now.items() if value != before[name]
    ]
    return shlex.join(
      [
        'python',
        'scripts/train.py',
        f'--config={self.file}:{row}@{self.base}',
        f'--workdir={run.folder}',
        *changed,
      ]
    )

  def _check_overrides(self, row: str, config: ConfigDict) -> None:
    """Raises a ValueError if a row's config is the same without one of them.

    A row that counts from the base's value, as rows of bins do, loses nothing.
    """
    base, given = self.make_base(), self.make_base()
    options.override(given, self.overrides)
    for text in self.overrides:
      value = functools.partial(_value, name=text.partition('=')[0])
      if value(given) in (value(base), value(config)):
        continue
      without = self.make_base()
      options.override(without, [one for one in self.overrides if one != text])
      try:
        self.rows[row].change(without)
      except ValueError:  # the row needs the override
        continue
      if value(without) == value(config):
        raise UserError(
          f'--set={text} would be lost, for this row itself sets {value(config)!r}:'
          ' leave it out, or choose other rows (--rows)'
        )


def _value(config: Any, name: str) -> Any:
  return functools.reduce(lambda node, field: node[field], name.split('.'), config)


def _leaves(config: ConfigDict) -> dict[str, str]:
  """Its values as text."""
  return dict(tables.flatten(config.to_dict()))
