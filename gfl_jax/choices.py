"""Choices by name, as configs make them."""

from collections.abc import Mapping
from typing import TypeVar

from gfl_jax.errors import UserError

Kind = TypeVar('Kind', str, int)
T = TypeVar('T')


def choose(choices: Mapping[Kind, T], kind: Kind, field: str) -> T:
  """`choices[kind]`.

  Args:
    choices: what each kind stands for.
    kind: the config's value.
    field: its name in the config, for the error.

  Raises:
    ValueError: an unknown kind; names the field and the kinds there are.
  """
  if kind not in choices:
    raise UserError(f'{field}={kind!r} is not one of {sorted(choices)}')
  return choices[kind]
