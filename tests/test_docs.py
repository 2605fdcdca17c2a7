"""What README and docs name is there, and their commands have the flags they give."""

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from configs import gfl_r50_fpn_1x_coco
from configs.ablations import table
from gfl_jax.reports.study import page

ROOT = pathlib.Path(__file__).parents[1]
PAGES = {
  path.relative_to(ROOT).as_posix(): path.read_text()
  for pattern in ('*.md', 'docs/*.md', 'results/*/README.md')
  for path in sorted(ROOT.glob(pattern))
}
RECIPE = 'configs/gfl_r50_fpn_1x_coco.py'
# Each command parses its flags in a child of its own, and ends before it runs.
PARSE = """
import json, os, runpy, sys
from absl import app, flags
from ml_collections import config_flags
from gfl_jax import launch

for script, *arguments in json.load(sys.stdin):
  if (child := os.fork()) == 0:
    sys.argv = [script, *arguments, '--only_check_args']
    run = runpy.run_path if script.endswith('.py') else runpy.run_module
    run(script, run_name='__main__')
  elif os.waitpid(child, 0)[1]:
    sys.exit(' '.join([script, *arguments]))
"""


def commands(text):
  """[script or module, *flags] of every command in a page that gives a flag."""
  found = re.findall(
    r'(scripts[/.]\w[\w/.]*)((?: +[^\s`>|&;]+)* -[^\n`>|&;]*)',
    text.replace('\\\n', ' '),
  )
  for script, flags in found:
    script = script.replace('keep_training.sh', 'train.py')
    flags = re.sub(r'--config=(FILE|\.\.\.)', f'--config={RECIPE}', flags)
    flags = flags.replace('num_classes=N', 'num_classes=3')
    yield [script, *shlex.split(flags, comments=True)]


def test_every_flag_and_config_field_of_a_command_exists():
  checked = [command for text in PAGES.values() for command in commands(text)]
  assert len(checked) > 30
  for text in PAGES.values():
    for fields in re.findall(r'`(--config\.[^`]+)`', text):
      flags = [f'--config={RECIPE}', '--workdir=runs/x', *shlex.split(fields)]
      checked.append(['scripts/train.py', *flags])
  done = subprocess.run(
    [sys.executable, '-c', PARSE],
    cwd=ROOT,
    env=os.environ | {'GFL_JAX_LAUNCHED': '1'},
    input=json.dumps(checked),
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('name', PAGES)
def test_links_lead_to_files_and_headings(name):
  links = re.findall(r'\]\(<?(?!https?:)([^)>#]*)(?:#([^)>]*))?>?\)', PAGES[name])
  for path, heading in links:
    file = (ROOT / name).parent / path if path else ROOT / name
    assert file.exists(), path
    assert not heading or heading in headings(file.read_text()), f'{path}#{heading}'


def headings(text):
  """The headings of a page as links name them."""
  found = re.findall(r'^#+ (.*)$', text, re.MULTILINE)
  return [re.sub(r'[^\w -]', '', title.lower()).replace(' ', '-') for title in found]


@pytest.mark.parametrize('name', PAGES)
def test_what_a_page_names_exists(name):
  text = PAGES[name]
  folders = 'gfl_jax|configs|scripts|tests|docs|results'
  for path in re.findall(rf'(?<![\w/.-])(?:{folders})/[\w./]*\w', text):
    assert (ROOT / path).exists(), path
  for target in re.findall(r'^make (\w+)', text, re.MULTILINE):
    assert f'\n{target}:' in (ROOT / 'Makefile').read_text(), target
  for extra in re.findall(r'\.\[(\w+)\]', text):
    assert f'\n{extra} = [' in (ROOT / 'pyproject.toml').read_text(), extra
  for study in re.findall(r'--study=(\w+)', text):
    assert study in table.studies(), study
  for base in re.findall(r'--base=(\w+)', text):
    assert base in table.bases(), base
  config = gfl_r50_fpn_1x_coco.get_config()
  for section, field in re.findall(r'`(\w+)\.(\w+)`', text):
    if section in config and field != 'json':
      assert field in config[section], f'{section}.{field}'


def test_the_readme_is_short():
  assert len(PAGES['README.md'].splitlines()) <= 130


def test_the_tables_of_studies_are_those_that_the_command_prints(monkeypatch):
  (tables,) = re.findall(
    r'<!-- studies -->\n(.*?)<!-- /studies -->', PAGES['docs/ablations.md'], re.DOTALL
  )
  monkeypatch.chdir(ROOT / 'docs')
  assert tables == page.summary_table('../results')
