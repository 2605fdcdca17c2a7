"""The figures and tables of docs/what_is_gfl.md are what its command makes."""

import re

import numpy as np
from PIL import Image

from docs import figures
from gfl_jax.ops.distributions import BinGrid, expectation

PAGE = (figures.FOLDER / 'what_is_gfl.md').read_text()


def test_the_command_draws_the_figures_and_prints_the_tables(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(figures, 'FOLDER', tmp_path)
  figures.main()
  printed = re.findall(r'(?:^\|.*\n)+', capsys.readouterr().out, re.MULTILINE)
  assert printed == re.findall(r'(?:^\|.*\n)+', PAGE, re.MULTILINE)
  for name in ('qfl.png', 'dfl.png'):
    assert f']({name})' in PAGE
    with Image.open(tmp_path / name) as drawn:
      with Image.open(figures.ROOT / 'docs' / name) as kept:
        assert drawn.size == kept.size
    assert (tmp_path / name).stat().st_size < 60_000


def test_qfl_is_least_at_its_label_for_every_beta():
  p = np.array([0.6, 0.7, 0.8])
  for beta in figures.BETAS:
    assert np.argmin(figures.qfl(p, 0.7, beta)) == 1


def test_the_three_answers_have_one_expectation():
  grid = BinGrid(0, 16, 17)
  for logits in figures.side_distributions(grid).values():
    np.testing.assert_allclose(expectation(logits, grid), figures.TARGET, atol=5e-3)


def test_links_lead_to_files():
  links = re.findall(r'\]\((?!https?:)([^)]+)\)', PAGE)
  assert len(links) > 8
  assert not [link for link in links if not (figures.ROOT / 'docs' / link).exists()]
