"""What a study is asked for on the command line: seeds, shares, rows, other values."""

import pytest
from ml_collections import ConfigDict

from gfl_jax.studies import options


@pytest.mark.parametrize(
  'text, seeds',
  [('3', (0, 1, 2)), ('1', (0,)), ('0,4,7', (0, 4, 7)), ('4,', (4,)), ('7, 2', (7, 2))],
)
def test_seeds(text, seeds):
  assert options.parse_seeds(text) == seeds


@pytest.mark.parametrize(
  'seeds, text', [((0,), '0,'), ((0, 1, 2), '0,1,2'), ((4,), '4,'), ((1, 0), '1,0')]
)
def test_seeds_as_text(seeds, text):
  assert options.format_seeds(seeds) == text
  assert options.parse_seeds(text) == seeds


@pytest.mark.parametrize(
  'text, message',
  [
    ('0,4,4', '0,4,4: .*only once'),
    ('0', '--seeds=0: give at least one seed'),
    ('-1', 'give how many'),
    ('1,x', 'give how many'),
    ('', 'give how many'),
    ('1,,2', 'give how many'),
  ],
)
def test_bad_seeds(text, message):
  with pytest.raises(ValueError, match=message):
    options.parse_seeds(text)


def test_jobs():
  assert options.parse_jobs('1/4') == (1, 4)
  for text in ('4/4', '1', 'a/2', '-1/2', '0/0', ''):
    with pytest.raises(ValueError, match='INDEX/COUNT'):
      options.parse_jobs(text)


def test_rows_are_chosen_by_pattern_in_the_tables_order():
  names = ('atss_none', 'fcos_none', 'atss_iou')
  assert options.select_rows(names, '*') == list(names)
  assert options.select_rows(names, 'atss_iou,*_none') == list(names)
  assert options.select_rows(names, 'atss_*') == ['atss_none', 'atss_iou']
  with pytest.raises(
    ValueError, match="no row matches 'x\\*'; the rows: atss_none, fcos"
  ):
    options.select_rows(names, 'atss_*,x*')


def override(*texts):
  c = ConfigDict(
    dict(epochs=2.0, cache=False, name='x', data=dict(n=3, size=(1, 2), empty=()))
  )
  options.override(c, texts)
  return c.to_dict()


def test_an_override_given_twice():
  with pytest.raises(
    ValueError, match='--set=epochs=4: epochs is given more than once'
  ):
    override('epochs=4', 'data.n=5', 'epochs=3')


def test_overrides_are_typed_by_the_field():
  data = dict(n=800, size=(64, 32), empty=())
  assert override(
    'epochs=4', 'data.n=800', 'cache=true', 'name=a=b', 'data.size=(64, 32)'
  ) == dict(epochs=4.0, cache=True, name='a=b', data=data)


@pytest.mark.parametrize(
  'text, message',
  [
    ('epoch=4', "no field 'epoch'; .*epochs"),
    ('data.m=4', "no field 'data.m'; .*data.n"),
    ('epochs.n=4', "no field 'epochs.n'"),
    ('data=4', "no field 'data'; .*data.n, data.size"),
    ('epochs', 'FIELD=VALUE'),
    ('data.n=4.5', '--set=data.n=4.5: .* int, such as 3'),
    ('cache=maybe', 'bool, such as False'),
    ('data.size=3', 'tuple, such as '),
    ('seed=3', 'given by --seeds'),
  ],
)
def test_overrides_that_cannot_be_meant(text, message):
  with pytest.raises(ValueError, match=message):
    override(text)
