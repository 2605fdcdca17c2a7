"""What a study runs: the config and the command of each of its runs."""

import dataclasses
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from gfl_jax.errors import UserError
from gfl_jax.studies import options
from gfl_jax.studies.runs import Run
from gfl_jax.training import config_checks


@dataclasses.dataclass(frozen=True)
class Study:
  """The rows of a table, the seeds, and the config that they start from.

  Attributes:
    name: of the study.
    file: of the study, as it stands in --config=FILE:ROW@BASE of a single run.
    module: that file's content: TITLE, ROWS, BASELINE and the other names that
      configs/ablations/table.py lists.
    chosen: names of the rows to run.
    base: the config that the rows change: its name, or the path of its file.
    make_base: makes that config.
    overrides: 'FIELD=VALUE' texts, set in the base before a row changes it.
    seeds: each chosen row is run once for each of them.
    root: the results folder.
    command: the command of the study without its rows and seeds, for its report.
  """

  name: str
  file: str
  module: Any
  chosen: Sequence[str]
  base: str
  make_base: Callable[[], ConfigDict]
  overrides: Sequence[str]
  seeds: Sequence[int]
  root: Path
  command: str

  @property
  def folder(self) -> Path:
    """The folder of study.json and the report."""
    return self.root / self.name

  def run(self, row: str, seed: int) -> Run:
    """One run, with its config.

    Raises:
      ValueError: the config cannot run, or the row sets what an override sets; the
        error names the row.
    """
    try:
      config = self._changed(row, self.overrides)
      self._check_overrides(row, options.flatten(config))
      config.seed = seed
      config_checks.check_config(config)
    except ValueError as error:
      raise UserError(f'row {row!r} on base {self.base!r}: {error}') from error
    return Run(self.root, f'{self.name}.{row}', config.lock())

  def runs(self) -> dict[tuple[str, int], Run]:
    """As `run`, by row and seed: all rows with the first seed, then with the next."""
    return {
      (row, seed): self.run(row, seed) for seed in self.seeds for row in self.chosen
    }

  def run_command(self, row: str, run: Run) -> str:
    """The command that repeats this run alone, with all values that were overridden."""
    plain = options.flatten(self._changed(row, ()))
    changed = [
      f'--config.{name}={value}'
      for name, value in options.flatten(run.config).items()
      if value != plain[name]
    ]
    config = f'--config={self.file}:{row}@{self.base}'
    flags = [config, f'--workdir={run.folder}', *changed]
    return shlex.join(['python', 'scripts/train.py', *flags])

  def _changed(self, row: str, overrides: Sequence[str]) -> ConfigDict:
    """The base with overrides and then a row's change."""
    config = self.make_base()
    options.override(config, overrides)
    self.module.ROWS[row].change(config)
    return config

  def _check_overrides(self, row: str, values: Mapping[str, Any]) -> None:
    """Raises a ValueError if a row replaces the value of an override.

    A row may compute its value from the base's, as the rows of bins do. So the value
    counts as replaced only if it is the same without the override. `values` are those
    of the config with all overrides and the row's change.
    """
    base = self.make_base()
    options.override(base, self.overrides)
    given = options.flatten(base)
    for text in self.overrides:
      name = text.partition('=')[0]
      others = [other for other in self.overrides if other != text]
      try:
        without = options.flatten(self._changed(row, others))
      except ValueError:  # the row needs the override
        continue
      if values[name] == without[name] != given[name]:
        raise UserError(
          f'--set={text} has no effect, because this row itself sets {name} to'
          f' {values[name]!r}: leave it out, or choose other rows (--rows)'
        )
