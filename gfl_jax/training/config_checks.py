"""Checks a config before anything runs: every field, its type and its range.

Every field of a config has a line in `_FIELDS`.
"""

import contextlib
import difflib
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gfl_jax import data, models
from gfl_jax.errors import UserError
from gfl_jax.evaluation import decode
from gfl_jax.training import loss_terms, optimizer
from gfl_jax.training.parallel import MODES
from gfl_jax.weights import pretrained


class _Rule(NamedTuple):
  """What a value must be, in words and as a test."""

  words: str
  fits: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  return is_number and math.isfinite(value)


def _whole(least: int) -> _Rule:
  words = f'a whole number from {least} on'
  return _Rule(words, lambda value: type(value) is int and value >= least)


def _one_of(names: Sequence[str]) -> _Rule:
  return _Rule(f'one of {list(names)}', lambda value: value in names)


def _several(rule: _Rule, count: int | None = None, *, rising: bool = False) -> _Rule:
  """Rule of a tuple, of `count` values or of any number."""

  def fits(values: Any) -> bool:
    return (
      isinstance(values, tuple | list)
      and count in (None, len(values))
      and all(map(rule.fits, values))
      and not (rising and list(values) != sorted(values))
    )

  number = 'a tuple, each' if count is None else f'{count} values, each'
  example = f', as ({", ".join(["8"] * count)})' if count else ''
  return _Rule(f'{number} {rule.words}{", rising" if rising else ""}{example}', fits)


_TEXT = _Rule('text', lambda value: isinstance(value, str))
# Only flags expand it: from a file it would name a folder called '~'.
_PATH = _Rule(
  'a path without ~, which only flags know: in a file write os.path.expanduser(...)',
  lambda value: isinstance(value, str) and not value.startswith('~'),
)
_FLAG = _Rule('True or False', lambda value: isinstance(value, bool))
_FINITE = _Rule('a number', _is_number)
_POSITIVE = _Rule('a number above 0', lambda x: _is_number(x) and x > 0)
_NOT_NEGATIVE = _Rule('a number from 0 on', lambda x: _is_number(x) and x >= 0)
_SHARE = _Rule('a number from 0 to 1', lambda x: _is_number(x) and 0 <= x <= 1)
_BELOW_1 = _Rule('a number from 0 on, below 1', lambda x: _is_number(x) and 0 <= x < 1)
_INSIDE = _Rule('a number above 0 and below 1', lambda x: _is_number(x) and 0 < x < 1)
# Between 0 and 1 the slope of the power is infinite at the target.
_EXPONENT = _Rule(
  '0, or a number from 1 on', lambda x: _is_number(x) and (x == 0 or x >= 1)
)
# JAX uses the last 32 bits of a larger seed.
_SEED = _Rule(
  'a whole number from 0 on, below 2**32',
  lambda x: type(x) is int and 0 <= x < 2**32,
)
_ANY = _Rule('', lambda value: True)

_FIELDS: dict[str, _Rule] = {
  'seed': _SEED,
  'parallel': _one_of(MODES),
  'batch_size': _whole(1),
  'accumulate': _whole(1),
  'epochs': _POSITIVE,
  'ema_decay': _BELOW_1,
  'log_every_steps': _whole(1),
  'eval_every_epochs': _POSITIVE,
  'checkpoint_every_steps': _whole(1),
  'tensorboard': _FLAG,
  'data.name': _one_of(data.NAMES),
  'data.path': _PATH,
  'data.data_dir': _PATH,
  'data.num_train': _whole(0),
  'data.num_validation': _whole(0),
  'data.canvas': _several(_whole(1), 2),
  'data.short_side': _several(_whole(1), 2, rising=True),
  'data.max_long_side': _whole(1),
  'data.zoom': _several(_POSITIVE, 2, rising=True),
  'data.flip': _SHARE,
  'data.max_boxes': _whole(1),
  'data.keep_empty': _FLAG,
  'data.cache': _FLAG,
  'data.max_bad_images': _whole(0),
  'data.mean': _several(_FINITE, 3),
  'data.std': _several(_POSITIVE, 3),
  'assignment.kind': _TEXT,
  'assignment.top_k': _whole(1),
  'assignment.center_radius': _NOT_NEGATIVE,
  'assignment.regress_range': _POSITIVE,
  'assignment.positive_iou': _SHARE,
  'assignment.negative_iou': _SHARE,
  'score.kind': _TEXT,
  'score.weight': _NOT_NEGATIVE,
  'class_loss.kind': _TEXT,
  'class_loss.weight': _NOT_NEGATIVE,
  'class_loss.beta': _EXPONENT,
  'class_loss.alpha': _NOT_NEGATIVE,
  'class_loss.gamma': _EXPONENT,
  'class_loss.min_overlap': _INSIDE,
  'box.kind': _TEXT,
  'box.start': _FINITE,
  'box.stop': _FINITE,
  'box.num_bins': _whole(2),
  'box.scale': _POSITIVE,
  'edge_loss.kind': _TEXT,
  'edge_loss.weight': _NOT_NEGATIVE,
  'box_loss.kind': _TEXT,
  'box_loss.weight': _NOT_NEGATIVE,
  'box_loss.weighting': _TEXT,
  'box_loss.min_weight_sum': _POSITIVE,
  'box_loss.max_positives_per_image': _whole(1),
  'points.offset': _FINITE,
  'points.anchor_scale': _POSITIVE,
  'model.num_classes': _whole(1),
  'model.dtype': _TEXT,
  'model.remat': _several(_TEXT),
  'model.backbone.kind': _TEXT,
  'model.backbone.depth': _whole(1),
  'model.backbone.widths': _several(_whole(1), 4),
  'model.backbone.groups': _whole(1),
  'model.backbone.group_width': _whole(1),
  'model.backbone.stem': _TEXT,
  'model.backbone.norm': _TEXT,
  'model.backbone.norm_groups': _whole(1),
  'model.backbone.frozen_stages': _whole(0),
  'model.backbone.pretrained': _PATH,
  'model.neck.channels': _whole(1),
  'model.neck.num_levels': _whole(1),
  'model.head.channels': _whole(1),
  'model.head.num_convs': _whole(0),
  'model.head.norm_groups': _whole(1),
  'model.head.prior_probability': _INSIDE,
  'optimizer.kind': _TEXT,
  'optimizer.learning_rate': _POSITIVE,
  'optimizer.momentum': _BELOW_1,
  'optimizer.weight_decay': _NOT_NEGATIVE,
  'optimizer.clip_norm': _NOT_NEGATIVE,
  'schedule.kind': _TEXT,
  'schedule.warmup_steps': _whole(0),
  'schedule.warmup_ratio': _SHARE,
  'schedule.decay_epochs': _several(_POSITIVE, rising=True),
  'schedule.decay_factor': _POSITIVE,
  'schedule.final_ratio': _SHARE,
  'schedule.extensions': _several(_ANY),
  'decode.score_threshold': _SHARE,
  'decode.candidates_per_level': _whole(1),
  'decode.nms': _TEXT,
  'decode.nms_iou': _SHARE,
  'decode.max_detections': _whole(1),
  'decode.min_size': _NOT_NEGATIVE,
  'decode.variance_voting': _NOT_NEGATIVE,
  'decode.uncertainty_penalty': _FLAG,
}


def check_config(config: Any) -> None:
  """Checks an experiment's config before anything is begun; nothing is computed.

  Raises:
    UserError: a field that is unknown, missing, of another type or out of range; kinds
      that do not exist or do not fit each other; sizes that no detector can be made of.
  """
  values = dict(_flat(config.to_dict()))
  problems = [_unknown(name) for name in values if name not in _FIELDS]
  problems += [f'{name} is missing' for name in _FIELDS if name not in values]
  problems += [
    f'{name}={values[name]!r} must be {rule.words}'
    for name, rule in _FIELDS.items()
    if name in values and not rule.fits(values[name])
  ]
  # The next checks read fields, so they run only if all fields are there.
  problems = problems or list(_misfits(config))
  if problems:
    raise UserError('the config cannot run: ' + '; '.join(problems))
  with _as_user_errors():
    loss_terms.check_choices(config)
    decode.check_choices(config)
    optimizer.make_optimizer(config, optimizer.make_schedule(config, 1), {})
    pretrained.check_pretrained(config)
    detector: Any = models.build_detector(config)
    _trace(detector)


def _flat(values: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, Any]]:
  for name, value in values.items():
    if isinstance(value, Mapping):
      yield from _flat(value, f'{prefix}{name}.')
    else:
      yield f'{prefix}{name}', value


def _unknown(name: str) -> str:
  close = difflib.get_close_matches(name, _FIELDS, n=1)
  return f'there is no field {name}' + (f', did you mean {close[0]}?' if close else '')


def _misfits(config: Any) -> Iterator[str]:
  """Fields that do not fit each other."""
  box, assignment = config.box, config.assignment
  if box.kind == 'general' and box.start >= box.stop:
    yield f'box.stop={box.stop} must be above box.start={box.start}'
  if assignment.negative_iou > assignment.positive_iou:
    yield (
      f'assignment.negative_iou={assignment.negative_iou} must not be above'
      f' assignment.positive_iou={assignment.positive_iou}'
    )
  if config.box_loss.max_positives_per_image < config.data.max_boxes:
    yield (
      f'box_loss.max_positives_per_image={config.box_loss.max_positives_per_image} must'
      f' be at least data.max_boxes={config.data.max_boxes}'
    )
  if config.batch_size % config.accumulate:
    yield (
      f'batch_size={config.batch_size} must be a multiple of accumulate='
      f'{config.accumulate}'
    )
  # The longer side of an evaluated image is at least this.
  smallest = min(config.data.short_side[1], config.data.max_long_side)
  if max(config.data.canvas) < smallest:
    yield (
      f'data.canvas={tuple(config.data.canvas)} cannot hold images of'
      f' data.short_side={tuple(config.data.short_side)} and data.max_long_side='
      f'{config.data.max_long_side}: enlarge it, or lower data.short_side'
    )
  drawn = config.data.num_train, config.data.num_validation
  if config.data.name == 'ambiguous_shapes' and not all(drawn):
    yield (
      f'data.num_train={drawn[0]} and data.num_validation={drawn[1]} must be at least 1'
      " where data.name='ambiguous_shapes'"
    )


@functools.cache
def _trace(detector: Any) -> None:  # cached: equal detectors are traced once
  image = jnp.zeros((1, 64, 64, 3), jnp.float32)
  jax.eval_shape(detector.init, jax.random.key(0), image)


@contextlib.contextmanager
def _as_user_errors() -> Iterator[None]:
  """Adds the section to an error of `ops` that names a field, as 'alpha=0.5 ...'.

  Any other error, such as one in a new loss, is not changed and shows its traceback.
  """
  try:
    yield
  except UserError:
    raise
  except ValueError as error:
    number = str(error).partition('=')[0]
    fields = [name for name in _FIELDS if name.rpartition('.')[2] == number]
    if len(fields) != 1:
      raise
    section = fields[0].removesuffix(number)
    raise UserError(f'the config cannot run: {section}{error}') from error
