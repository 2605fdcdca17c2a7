import pytest

from gfl_jax.config import choose


def test_a_choice_is_what_the_kind_stands_for():
  assert choose({'a': 1, 'b': 2}, 'b', 'x.kind') == 2
  assert choose({18: 'small', 50: 'large'}, 50, 'depth') == 'large'


def test_an_unknown_kind_names_the_field_and_the_kinds():
  with pytest.raises(ValueError, match=r"x.kind='c' is not one of \['a', 'b'\]"):
    choose({'b': 2, 'a': 1}, 'c', 'x.kind')
