r"""Makes a run of a detector that mmdetection or GFL-JAX has trained.

  python scripts/import_weights.py --checkpoint=gfl_r50_fpn_1x_coco.pth \
    --config=configs/gfl_r50_fpn_1x_coco.py --workdir=runs/r50_mmdet

The config must describe the same detector. R-101 needs
--config.model.backbone.depth=101; X-101-32x4d needs that and
--config.model.backbone.groups=32 --config.model.backbone.group_width=4. The run can be
evaluated, exported and used like any other; scripts/train.py with the same config and
folder continues its training.

For other classes than the checkpoint's, give --new_head and the config of the training
that follows, with its data, to both commands:

  python scripts/import_weights.py --checkpoint=gfl_r50_fpn_1x_coco.pth \
    --new_head --class_names=FOLDER/annotations/instances_train.json \
    --config=configs/gfl_r50_fpn_1x_coco.py --workdir=runs/tuned \
    --config.data.name=coco_folder --config.data.path=FOLDER \
    --config.model.num_classes=3 --config.batch_size=4
  python scripts/train.py --config=configs/gfl_r50_fpn_1x_coco.py --workdir=runs/tuned \
    --config.data.name=coco_folder --config.data.path=FOLDER \
    --config.model.num_classes=3 --config.batch_size=4

--checkpoint may also be the folder of a run (with --step), or of an export that holds
the parameters, to start another training from it.

Reading .pth needs torch (pip install -e '.[torch]'); no code in the file is executed.

Checkpoints of mmdetection 1.x (the authors' first code) need
--config.points.offset=0.5. Its boxes include their last pixel, so here each side comes
out half a pixel of the network's input further inside.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from absl import app, flags
from ml_collections import config_flags

from gfl_jax import launch

_CHECKPOINT = flags.DEFINE_string(
  'checkpoint',
  None,
  "mmdetection's file .pth, or its state dict as .safetensors; or the folder of a run"
  ' or of an export.',
)
_CONFIG = config_flags.DEFINE_config_file('config', None, 'File of the config.')
_WORKDIR = flags.DEFINE_string('workdir', None, "The run's folder, made if missing.")
_WEIGHTS = flags.DEFINE_enum(
  'weights',
  'ema',
  ['ema', 'raw'],
  "If the checkpoint has a running average: 'ema' takes it, 'raw' does not.",
)
_STEP = flags.DEFINE_string(
  'step', None, "Of a run: 'newest' (the default), 'best' or a step number."
)
_CLASS_NAMES = flags.DEFINE_string(
  'class_names', '', "cat,dog or a FILE.json in COCO form; by default the checkpoint's."
)
_NEW_HEAD = flags.DEFINE_boolean(
  'new_head', False, "Start with a new class output, for the config's num_classes."
)


def main(argv: list[str]) -> None:
  """Checks the flags and imports."""
  if argv[1:]:
    raise app.UsageError(f'unknown arguments: {argv[1:]}')
  from gfl_jax.inference import loading
  from gfl_jax.training import importing
  from gfl_jax.weights import state_dicts

  if pathlib.Path(_CHECKPOINT.value).is_dir():
    weights = _WEIGHTS.value if _WEIGHTS.present else None
    stored = loading.load_trained(_CHECKPOINT.value, step=_STEP.value, weights=weights)
  elif _STEP.present:
    raise app.UsageError(f'--step: {_CHECKPOINT.value} is not the folder of a run')
  else:
    stored = state_dicts.read_state_dict(_CHECKPOINT.value, _WEIGHTS.value)
  importing.import_detector(
    stored,
    _WORKDIR.value,
    _CONFIG.value,
    class_names=_CLASS_NAMES.value,
    new_head=_NEW_HEAD.value,
  )


if __name__ == '__main__':
  launch.require_flags(['checkpoint', 'config', 'workdir'])
  launch.run(main)
