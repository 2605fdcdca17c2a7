"""One HTML page about a run, made from the files in the run's folder alone."""

import contextlib
import html
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gfl_jax import files
from gfl_jax.evaluation import pictures, plots
from gfl_jax.evaluation.coco_metrics import METRICS
from gfl_jax.ops import boxes as box_ops

_MIN_SCORE = 0.3  # of a detection that is drawn
_NUM_AMBIGUOUS, _NUM_SHARP = 6, 3  # figures of edge distributions
_SAME_PLACE = 0.7  # IoU above which two detections would give the same figure

_STYLE = """
:root { --ink: #1f2937; --soft: #6b7280; --line: #e5e7eb; --accent: #2563eb; }
* { box-sizing: border-box; }
body { margin: 0; background: #f6f7f9; color: var(--ink); line-height: 1.5;
  font-family: system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 1.7rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 0 0 12px; }
h3 { font-size: .95rem; margin: 18px 0 8px; }
p { margin: 0 0 14px; color: var(--soft); }
header p { margin: 4px 0 20px; }
section { background: white; border: 1px solid var(--line); border-radius: 12px;
  padding: 20px 22px; margin-top: 20px; }
section > :last-child { margin-bottom: 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr));
  gap: 12px; }
.tile { background: white; border: 1px solid var(--line); border-radius: 12px;
  padding: 12px 16px; }
.tile b { display: block; font-size: 1.55rem; font-weight: 650; line-height: 1.3; }
.tile span { color: var(--soft); font-size: .85rem; }
.tile.main b { color: var(--accent); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 5px 18px 5px 0; vertical-align: top;
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
th { font-weight: 600; } td.number { text-align: right; }
.wide { overflow-x: auto; margin-bottom: 16px; }
.wide svg { width: 100%; min-width: 680px; height: auto; display: block; }
.wide table { white-space: nowrap; }
.classes { columns: 320px; column-gap: 36px; }
.class { display: grid; grid-template-columns: 9.5em 1fr 3em; gap: 10px;
  align-items: center; break-inside: avoid; font-size: .9rem; padding: 2px 0; }
.class span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.class i { display: block; height: 10px; border-radius: 3px;
  background: var(--accent); }
.class div { background: #eef0f3; border-radius: 3px; }
.class b { font-weight: 500; text-align: right; font-variant-numeric: tabular-nums; }
.photos { columns: 320px; column-gap: 18px; }
.photos figure { break-inside: avoid; padding-bottom: 18px; }
.edges { display: grid; gap: 18px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr)); }
figure { margin: 0; } figure svg, figure img { width: 100%; height: auto;
  display: block; border-radius: 6px; }
figure svg text { font-family: inherit; font-weight: 600; }
figcaption { color: var(--soft); font-size: .85rem; padding-top: 6px;
  overflow-wrap: anywhere; }
.edges figure { border: 1px solid var(--line); border-radius: 8px; padding: 10px; }
pre { background: #f6f7f9; border-radius: 8px; padding: 14px; overflow-x: auto;
  font-size: .82rem; }
summary { cursor: pointer; font-weight: 600; }
"""


def write_report(workdir: str | os.PathLike) -> Path:
  """Writes `report.html` into a run's folder and returns its path.

  The page holds its pictures itself and loads nothing, so it can be sent to anyone.
  Parts that do not exist yet (no step logged, not evaluated) are named as such.

  Args:
    workdir: the run's folder. Reads config.json, env.json, metrics.jsonl,
      eval/metrics.json and eval/samples.npz.

  Raises:
    FileNotFoundError: the folder has no config.json.
  """
  workdir = Path(workdir)
  if not (workdir / 'config.json').exists():
    raise FileNotFoundError(f'{workdir} is not the folder of a run: no config.json')
  config = json.loads((workdir / 'config.json').read_text())
  env = _read_json(workdir / 'env.json')
  train, evals = _by_step(read_log(workdir / 'metrics.jsonl'))
  metrics = _read_json(workdir / 'eval' / 'metrics.json')
  name = html.escape(workdir.resolve().name)
  body = [
    _headline(name, config, train, metrics),
    _section('Training', _training(train)),
    _section('Average precision', _precision(evals, metrics)),
    _section('Average precision per class', _per_class(metrics)),
    *_sample_sections(workdir / 'eval' / 'samples.npz'),
    _section('Machine and versions', _environment(env)),
    _section('Configuration', _configuration(config)),
  ]
  page = (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f'<title>{name}</title><style>{_STYLE}</style></head>\n'
    f'<body><main>{"".join(body)}</main></body></html>\n'
  )
  path = workdir / 'report.html'
  files.write_whole(path, page)
  return path


def read_log(path: str | os.PathLike) -> list[dict]:
  """The lines of a metrics.jsonl, in the file's order; none if there is no file.

  Lines that are not whole JSON are left out: a run that is killed, or is writing now,
  leaves half a line.
  """
  path = Path(path)
  text = path.read_text(encoding='utf-8', errors='replace') if path.exists() else ''
  lines = []
  for line in text.splitlines():
    with contextlib.suppress(json.JSONDecodeError):
      lines.append(json.loads(line))
  return lines


def _read_json(path: Path) -> dict:
  """A file's content, empty if it does not exist."""
  return json.loads(path.read_text()) if path.exists() else {}


def _by_step(lines: list[dict]) -> tuple[list[dict], list[dict]]:
  """The train and the eval lines, by rising step.

  A run that was resumed may have logged a step twice: the later line counts.
  """
  by_step: dict[str, dict[int, dict]] = {'train': {}, 'eval': {}}
  for line in lines:
    by_step[line['kind']][line['step']] = line
  train, evals = ([steps[step] for step in sorted(steps)] for steps in by_step.values())
  return train, evals


def _section(title: str, content: str) -> str:
  return f'<section><h2>{title}</h2>{content}</section>\n'


def _number(value, digits: int = 3) -> str:
  """A figure of the page; a dash for what is unknown or not a number."""
  if value is None or not np.isfinite(value):
    return '–'
  return f'{value:.{digits}f}'


def _duration(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours} h {minutes} min' if hours else f'{minutes} min {seconds} s'


def _headline(name: str, config: Mapping, train: list, metrics: Mapping) -> str:
  tiles = [(key, _number(metrics.get(key))) for key in ('AP', 'AP50', 'AP75')]
  tiles.append(('images evaluated', str(metrics.get('num_images', '–'))))
  if train:
    tiles.append(('training steps', f'{train[-1]["step"]:,}'))
    tiles.append(
      ('time in training steps', _duration(_training_seconds(config, train)))
    )
  boxes = ''.join(
    f'<div class="tile{" main" if label == "AP" else ""}"><b>{value}</b>'
    f'<span>{label}</span></div>'
    for label, value in tiles
  )
  choices = ' · '.join(
    f'{part.replace("_", " ")} {html.escape(str(config[part]["kind"]))}'
    for part in ('assignment', 'score', 'class_loss', 'box', 'edge_loss')
  )
  data = html.escape(config['data']['name'])
  return (
    f'<header><h1>{name}</h1><p>Data {data} · {choices}</p>'
    f'<div class="tiles">{boxes}</div></header>\n'
  )


def _training_seconds(config: Mapping, train: list) -> float:
  """Time spent in steps: what the logged speeds add up to; a first line has none."""
  steps = np.diff([0, *(line['step'] for line in train)])
  speeds = np.array([line.get('images_per_second', np.nan) for line in train])
  seconds = steps * config['batch_size'] / speeds
  return float(np.nansum(seconds))


def _training(train: list) -> str:
  if not train:
    return '<p>No step is logged yet.</p>'
  return f'<div class="wide">{plots.training_curves(train)}</div>'


def _precision(evals: list, metrics: Mapping) -> str:
  if not metrics:
    return '<p>Not evaluated yet.</p>'
  head = ''.join(f'<th>{name}</th>' for name in METRICS)
  row = ''.join(f'<td>{_number(metrics[name])}</td>' for name in METRICS)
  table = f'<div class="wide"><table><tr>{head}</tr><tr>{row}</tr></table></div>'
  note = (
    f'<p>COCO metrics after step {metrics["step"]:,}: AP is the mean over IoU 0.50 to '
    '0.95; s, m and l are small (below 32² px), medium and large (above 96² px) boxes; '
    'AR is recall with 1, 10 or 100 detections per image. A dash: nothing to find.</p>'
  )
  curves = f'<div class="wide">{plots.ap_curves(evals)}</div>' if evals else ''
  return note + table + curves


def _per_class(metrics: Mapping) -> str:
  if not metrics:
    return '<p>Not evaluated yet.</p>'
  rows = sorted(
    metrics['per_class'].items(), key=lambda row: (row[1] is None, -(row[1] or 0))
  )
  bars = ''.join(
    f'<div class="class"><span title="{html.escape(name)}">{html.escape(name)}</span>'
    f'<div><i style="width:{100 * (ap or 0):.1f}%"></i></div><b>{_number(ap)}</b></div>'
    for name, ap in rows
  )
  return f'<div class="classes">{bars}</div>'


def _sample_sections(path: Path) -> list[str]:
  """The gallery and the edge distributions."""
  title = 'Detections and ground truth'
  if not path.exists():
    return [_section(title, '<p>Not evaluated yet.</p>')]
  with np.load(path) as arrays:
    names, bins = arrays['class_names'].tolist(), arrays['bin_values']
    samples = [
      {key.split('/')[1]: arrays[key] for key in arrays if key.startswith(f'{i}/')}
      for i in range(int(arrays['num_samples']))
    ]
  if not samples:
    return [_section(title, '<p>The evaluation set has no image with a box.</p>')]
  return [
    _section(title, _gallery(samples, names)),
    _section('Distributions of the sides', _edges(samples, names, bins)),
  ]


def _drawn(sample: Mapping) -> list[int]:
  """Indices of the detections that are drawn, best first."""
  return np.flatnonzero(sample['scores'] >= _MIN_SCORE).tolist()


def _distinct(sample: Mapping) -> list[int]:
  """`_drawn` without those at the place of a better one, of whatever class."""
  ious = np.asarray(box_ops.iou_matrix(sample['boxes'], sample['boxes']))
  kept: list[int] = []
  for index in _drawn(sample):
    if not (ious[index, kept] > _SAME_PLACE).any():
      kept.append(index)
  return kept


def _gallery(samples: list, names: list[str]) -> str:
  figures = []
  for sample in samples:
    drawn = _drawn(sample)
    figures.append(
      f'<figure>{pictures.annotated_image(sample, names, drawn)}<figcaption>Image '
      f'{int(sample["image_id"])} · true boxes {len(sample["true_boxes"])}, detected '
      f'{len(drawn)}</figcaption></figure>'
    )
  return (
    f'<p>Detections with a score of at least {_MIN_SCORE} in the colour of their '
    'class; ground truth dashed. Point at a box for its name: images with more than '
    f'{pictures.MAX_LABELED} detections have no labels.</p>'
    f'<div class="photos">{"".join(figures)}</div>'
  )


def _edges(samples: list, names: list[str], bins: np.ndarray) -> str:
  ambiguous, sharp = _choose_edges(samples)
  if not ambiguous:
    return f'<p>No detection scores {_MIN_SCORE} or more.</p>'
  groups = ''.join(
    f'<h3>{heading}</h3><div class="edges">'
    f'{"".join(_edge_figure(*entry, names, bins) for entry in chosen)}</div>'
    for heading, chosen in (('Most ambiguous', ambiguous), ('Sharpest', sharp))
    if chosen
  )
  return (
    '<p>What the detector says about each side of a box: left and right along x, above '
    'the picture; top and bottom along y, beside it. A clear side gives a peak, an '
    'ambiguous one a broad hill with a large standard deviation σ. A curve that drops '
    'straight down is at the end of its grid of distances, mostly at the anchor point: '
    'no distance is below the first. Dashed: the ground truth; grey: beyond the image. '
    '“No object here”: no true box overlaps the detection by an IoU of 0.5.</p>'
    f'{groups}'
  )


def _edge_figure(sample: Mapping, index: int, names: list[str], bins) -> str:
  note = '' if _is_matched(sample, index) else ' · no object here'
  return (
    f'<figure>{plots.edge_distributions(sample, index, bins)}<figcaption>'
    f'{html.escape(names[sample["classes"][index]])}, score '
    f'{sample["scores"][index]:.2f}, image {int(sample["image_id"])}{note}'
    '</figcaption></figure>'
  )


def _is_matched(sample: Mapping, index: int) -> bool:
  truth = plots.matching_truth(sample['boxes'][index], sample['true_boxes'])
  return truth is not None


def _choose_edges(samples: list) -> list[list[tuple[Mapping, int]]]:
  """Detections to draw: those with one side far broader than another, and all sharp.

  Those that match a true box come first. At most two per image, and only the best of
  those at the same place.
  """
  pool = [(sample, index) for sample in samples for index in _distinct(sample)]

  def in_bins(entry) -> np.ndarray:
    sample, index = entry
    return sample['edge_std'][index] / sample['strides'][index]

  by_contrast = sorted(pool, key=lambda e: (not _is_matched(*e), -np.ptp(in_bins(e))))
  by_sharpness = sorted(pool, key=lambda e: (not _is_matched(*e), in_bins(e).max()))
  groups: list[list[tuple[Mapping, int]]] = []
  for candidates, limit in ((by_contrast, _NUM_AMBIGUOUS), (by_sharpness, _NUM_SHARP)):
    group: list[tuple[Mapping, int]] = []
    groups.append(group)
    for sample, index in candidates:
      same_image = [i for chosen in groups for other, i in chosen if other is sample]
      if len(group) < limit and len(same_image) < 2 and index not in same_image:
        group.append((sample, index))
  return groups


def _environment(env: Mapping) -> str:
  if not env:
    return '<p>The run has no env.json.</p>'
  rows = ''.join(
    f'<tr><th>{html.escape(key)}</th><td>{html.escape(value)}</td></tr>'
    for key, value in _flatten(env)
  )
  return f'<table>{rows}</table>'


def _flatten(tree: Mapping, prefix: str = '') -> list[tuple[str, str]]:
  """Rows 'a.b', text of a nested dict."""
  rows = []
  for key, value in tree.items():
    if isinstance(value, Mapping):
      rows += _flatten(value, f'{prefix}{key}.')
    else:
      rows.append((f'{prefix}{key}', str(value)))
  return rows


def _configuration(config: Mapping) -> str:
  text = html.escape(json.dumps(config, indent=2))
  return f'<details><summary>config.json</summary><pre>{text}</pre></details>'
