"""What the README says of results is what the kept files say."""

import pathlib
import re

from gfl_jax.reports.study import page

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text()


def test_the_tables_of_studies_are_those_that_the_command_prints():
  between = r'<!-- studies: (.*?) -->\n(.*?)<!-- /studies -->'
  (found,) = re.findall(between, README, re.DOTALL)
  command, tables = found
  assert command == 'python scripts/ablate.py --summary=results'
  assert tables == page.summary_table(ROOT / 'results')


def test_what_the_readme_links_to_is_there():
  links = re.findall(r'\]\(<?(?!https?:)([^)>]+)>?\)', README)
  assert len(links) > 5
  assert not [link for link in links if not (ROOT / link).exists()]
