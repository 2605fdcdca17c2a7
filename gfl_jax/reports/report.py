"""One HTML page about a run, made from the files in the run's folder alone."""

import html
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gfl_jax import files
from gfl_jax.errors import MissingFileError
from gfl_jax.evaluation.coco_metrics import METRICS
from gfl_jax.reports import diagnostic_sections, markup, plots, sample_sections
from gfl_jax.reports.markup import Table, number, paragraph, section

MANY_CLAMPED = 0.05  # share of sides beyond their bins that gets a line
# Figure 12 of the paper, over the positives of a trained GFL with ResNet-50.
_LABELS = {
  'positive_iou': ('IoU with the true box', '0.84 ± 0.14'),
  'positive_centerness': ('centerness', '0.64 ± 0.18'),
}


def write_report(
  workdir: str | os.PathLike, evaluation: str | os.PathLike | None = None
) -> Path:
  """Writes `report.html` of a run and returns its path.

  The page is one file that loads nothing, so it can be sent to anyone. It names parts
  that do not exist yet (no step logged, not evaluated).

  Args:
    workdir: the run's folder. Reads config.json, env.json and metrics.jsonl.
    evaluation: a folder with metrics.json, diagnostics.npz and samples.npz, where the
      page is written too. If None, the page shows the evaluation of the training, in
      eval/, and is written into the run's folder.

  Raises:
    FileNotFoundError: the folder has no config.json.
  """
  workdir = Path(workdir)
  if not (workdir / 'config.json').exists():
    raise MissingFileError(f'{workdir} is not the folder of a run: no config.json')
  config = json.loads((workdir / 'config.json').read_text())
  env = files.read_json(workdir / 'env.json')
  lines = files.read_json_lines(workdir / 'metrics.jsonl')
  train, evals = (_by_step(lines, kind) for kind in ('train', 'eval'))
  measured = Path(evaluation) if evaluation else workdir / 'eval'
  metrics = files.read_json(measured / 'metrics.json')
  name = workdir.resolve().name
  missing = paragraph(markup.NOT_EVALUATED)
  machine = paragraph('The run has no env.json.')
  if env:
    machine = Table('ll', ['', ''], markup.flatten(env)).as_html()
  listed = markup.listing(json.dumps(config, indent=2))
  body = [
    _headline(name, config, train, metrics),
    section('Training', _training(train, config)),
    section('Average precision', _precision(evals, metrics) if metrics else missing),
    section('Average precision per class', _per_class(metrics) if metrics else missing),
    *diagnostic_sections.sections(metrics, measured / 'diagnostics.npz', config),
    *sample_sections.sections(measured / 'samples.npz'),
    section('Machine and versions', machine),
    section('Configuration', markup.details('config.json', listed)),
  ]
  path = (measured if evaluation else workdir) / 'report.html'
  files.atomic_write(path, markup.page(name, ''.join(body)))
  return path


def _by_step(lines: list[dict], kind: str) -> list[dict]:
  """The lines of a kind, by rising step; of a step logged twice, the later line."""
  found = {line['step']: line for line in lines if line['kind'] == kind}
  return [found[step] for step in sorted(found)]


def _headline(name: str, config: Mapping, train: list, metrics: Mapping) -> str:
  tiles = {key: number(metrics.get(key)) for key in ('AP', 'AP50', 'AP75')}
  tiles['images evaluated'] = str(metrics.get('num_images', markup.DASH))
  if train:
    # The logged speeds give the time between two lines; a first line has no speed.
    steps = np.diff([0, *(line['step'] for line in train)])
    speeds = np.array([line.get('images_per_second', np.nan) for line in train])
    seconds = float(np.nansum(steps * config['batch_size'] / speeds))
    tiles['training steps'] = f'{train[-1]["step"]:,}'
    tiles['time in training steps'] = markup.duration(seconds)
  choices = [
    f'{part.replace("_", " ")} {config[part]["kind"]}'
    for part in ('assignment', 'score', 'class_loss', 'box', 'edge_loss')
  ]
  about = ' · '.join([f'Data {config["data"]["name"]}', *choices])
  return markup.header(name, paragraph(about), markup.tiles(tiles))


def _training(train: list, config: Mapping) -> str:
  if not train:
    return paragraph('No step is logged yet.')
  last, notes = train[-1], []
  for epochs, how in config.get('schedule', {}).get('extensions', ()):
    notes.append(f'After {epochs:g} epochs the run was extended by {how}.')
  if last.get('clamped_targets', 0) > MANY_CLAMPED:
    notes.append(
      f'{last["clamped_targets"]:.0%} of the sides of positives are longer than their '
      'bins reach and are trained as shorter ones: box.stop is too small for these '
      'boxes.'
    )
  labels = [
    f'{what} {number(last[key], 2)} ± {number(last[f"{key}_std"], 2)} '
    f'(GFL, ResNet-50, COCO: {published})'
    for key, (what, published) in _LABELS.items()
    if f'{key}_std' in last
  ]
  if labels:
    notes.append(
      'Two possible quality labels of the positives, mean ± standard deviation in a '
      f'batch, averaged over the last logged batches: {"; ".join(labels)}.'
    )
  curves = markup.wide(plots.training_curves(train))
  return curves + ''.join(map(paragraph, notes))


def _precision(evals: list, metrics: Mapping) -> str:
  parts = []
  if 'other_data' in metrics:
    parts.append(paragraph(f"On other data than the run's: {metrics['other_data']}"))
  parts.append(
    paragraph(
      f'COCO metrics after step {metrics["step"]:,}: AP is the mean over IoU 0.50 to '
      '0.95; s, m and l are small (below 32² px), medium and large (above 96² px) '
      'boxes; AR is recall with 1, 10 or 100 detections per image. A dash: no such '
      'box.'
    )
  )
  values = [number(metrics[name]) for name in METRICS]
  parts.append(Table('r' * len(METRICS), list(METRICS), [values]).as_html())
  if evals and 'other_data' not in metrics:
    parts.append(markup.wide(plots.ap_curves(evals)))
  return ''.join(parts)


def _per_class(metrics: Mapping) -> str:
  rank = lambda row: -1 if row[1] is None else row[1]
  rows = sorted(metrics['per_class'].items(), key=rank, reverse=True)
  bars = ''.join(
    f'<div class="class"><span title="{html.escape(name)}">{html.escape(name)}</span>'
    f'<div><i style="width:{100 * (ap or 0):.1f}%"></i></div><b>{number(ap)}</b></div>'
    for name, ap in rows
  )
  return f'<div class="classes">{bars}</div>'
