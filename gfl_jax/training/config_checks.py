"""Checks a config before anything runs: every field, its type and its range.

Every field of a config is named in `_RULES`.
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
  'a whole number from 0 on, below 2**32', lambda x: type(x) is int and 0 <= x < 2**32
)
_ANY = _Rule('', lambda value: True)

_RULES: tuple[tuple[_Rule, str], ...] = (
  (_SEED, 'seed'),
  (_one_of(MODES), 'parallel'),
  (
    _whole(1),
    'batch_size accumulate log_every_steps checkpoint_every_steps '
    'data.max_long_side data.max_boxes assignment.top_k '
    'box_loss.max_positives_per_image model.num_classes model.backbone.depth '
    'model.backbone.groups model.backbone.group_width model.backbone.norm_groups '
    'model.neck.channels model.neck.num_levels model.head.channels '
    'model.head.norm_groups decode.candidates_per_level decode.max_detections',
  ),
  (
    _POSITIVE,
    'epochs eval_every_epochs assignment.regress_range box.scale '
    'box_loss.min_weight_sum points.anchor_scale optimizer.learning_rate '
    'schedule.decay_factor',
  ),
  (_BELOW_1, 'ema_decay optimizer.momentum'),
  (_FLAG, 'tensorboard data.keep_empty data.cache decode.uncertainty_penalty'),
  (_one_of(data.NAMES), 'data.name'),
  (_PATH, 'data.path data.data_dir model.backbone.pretrained'),
  (
    _whole(0),
    'data.num_train data.num_validation data.max_bad_images '
    'model.backbone.frozen_stages model.head.num_convs schedule.warmup_steps',
  ),
  (_several(_whole(1), 2), 'data.canvas'),
  (_several(_whole(1), 2, rising=True), 'data.short_side'),
  (_several(_POSITIVE, 2, rising=True), 'data.zoom'),
  (
    _SHARE,
    'data.flip assignment.positive_iou assignment.negative_iou '
    'schedule.warmup_ratio schedule.final_ratio decode.score_threshold '
    'decode.nms_iou',
  ),
  (_several(_FINITE, 3), 'data.mean'),
  (_several(_POSITIVE, 3), 'data.std'),
  (
    _TEXT,
    'assignment.kind score.kind class_loss.kind box.kind edge_loss.kind '
    'box_loss.kind box_loss.weighting model.dtype model.backbone.kind '
    'model.backbone.stem model.backbone.norm optimizer.kind schedule.kind '
    'decode.nms',
  ),
  (
    _NOT_NEGATIVE,
    'assignment.center_radius score.weight class_loss.weight class_loss.alpha '
    'edge_loss.weight box_loss.weight optimizer.weight_decay optimizer.clip_norm '
    'decode.min_size decode.variance_voting',
  ),
  (_EXPONENT, 'class_loss.beta class_loss.gamma'),
  (_INSIDE, 'class_loss.min_overlap model.head.prior_probability'),
  (_FINITE, 'box.start box.stop points.offset'),
  (_whole(2), 'box.num_bins'),
  (_several(_TEXT), 'model.remat'),
  (_several(_whole(1), 4), 'model.backbone.widths'),
  (_several(_POSITIVE, rising=True), 'schedule.decay_epochs'),
  (_several(_ANY), 'schedule.extensions'),
)
_FIELDS = {name: rule for rule, names in _RULES for name in names.split()}


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
    decode.check_decoding(config)
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
  if config.data.name == 'ambiguous_shapes' and config.data.path:
    yield (
      f"data.path={config.data.path!r}, but 'ambiguous_shapes' draws its scenes: set"
      " data.name='coco_folder' for a folder of photographs, 'file' for a .npz"
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
