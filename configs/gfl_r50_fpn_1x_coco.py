"""GFL, ResNet-50, 12 epochs, COCO 2017: the authors' recipe to the letter.

  python scripts/train.py --config=configs/gfl_r50_fpn_1x_coco.py \
    --workdir=runs/r50_1x --config.model.backbone.pretrained=resnet50.pth

Needs COCO 2017 prepared under `data.data_dir` (by scripts/prepare_data.py with this
config, or by TFDS in TFRecord files), and torchvision's ImageNet weights of ResNet-50.
Published: AP 40.2 on val2017 (paper, mmdetection). Ours: not run yet. Cost: not
measured yet.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """Every value that runs; other configs start from this one."""
  c = ml_collections.ConfigDict()
  c.seed = 0
  c.parallel = 'jit'  # or 'pmap': the same numbers
  c.batch_size = 16  # over all devices
  c.accumulate = 1  # micro-batches that one step adds up
  c.epochs = 12.0
  c.ema_decay = 0.0  # 0: no running average of the parameters
  c.log_every_steps = 50
  c.eval_every_epochs = 1.0
  c.checkpoint_every_steps = 1000
  c.tensorboard = False

  c.data = dict(
    name='coco/2017',  # or 'coco_folder', 'ambiguous_shapes', 'file'
    path='',  # of COCO's zips, a coco_folder, or a file of scripts/prepare_data.py
    data_dir='datasets',  # where TFDS keeps what it has prepared
    num_train=0,  # scenes to draw: ambiguous_shapes alone
    num_validation=0,
    canvas=(800, 1344),  # height, width; portrait images come on its transpose
    short_side=(800, 800),  # drawn from this range, both ends included
    max_long_side=1333,
    zoom=(1.0, 1.0),  # a factor on the size; what leaves the canvas is cropped
    flip=0.5,
    max_boxes=100,
    keep_empty=False,  # True: images without boxes are trained on, too
    cache=False,  # True: decode once, keep in memory
    max_bad_images=10,
    mean=(123.675, 116.28, 103.53),
    std=(58.395, 57.12, 57.375),
  )

  # The five choices that make a dense detector.
  c.assignment = dict(
    kind='atss',  # or 'fcos', 'max_iou'
    top_k=9,  # atss: candidates of a box on each level
    center_radius=1.5,  # fcos: of the region that may learn a box, in strides; 0: off
    regress_range=8.0,  # fcos: the longest distance that a level learns, in strides
    positive_iou=0.5,  # max_iou: from here on an anchor is positive,
    negative_iou=0.4,  # below this one background
  )
  c.score = dict(
    kind='joint',  # 'none', 'centerness', 'iou', 'centerness_guided', 'iou_guided'
    weight=1.0,  # of the loss of a quality branch
  )
  c.class_loss = dict(
    kind='quality_focal',  # 'focal', 'gaussian_focal', 'varifocal'
    weight=1.0,
    beta=2.0,  # quality_focal
    alpha=0.25,  # the others
    gamma=2.0,  # the others
    min_overlap=0.7,  # gaussian_focal: IoU of a box moved by the Gaussian's radius
  )
  c.box = dict(
    kind='general',  # 'dirac', 'gaussian'
    start=0.0,  # general: first and last bin, in strides
    stop=16.0,
    num_bins=17,
    scale=4.0,  # dirac, gaussian: the distance at output 0, in strides
  )
  c.edge_loss = dict(
    kind='distribution_focal',  # 'none'; of a gaussian box: 'gaussian_nll', 'kl'
    weight=0.25,
  )
  c.box_loss = dict(
    kind='giou',  # 'iou'
    weight=2.0,
    weighting='class_score',  # of the positives: 'centerness', 'iou', 'uniform'
    min_weight_sum=1.0,  # on 8 GPUs the authors' clamp of the mean is one of 8
    max_positives_per_image=1024,  # in the mean over a device's batch
  )

  c.points = dict(offset=0.0, anchor_scale=8)
  c.model = dict(
    num_classes=80,
    dtype='float32',  # 'bfloat16': the trunk alone
    remat=(),  # of 'stage1' .. 'stage4', 'head': less memory, its forward pass twice
    backbone=dict(
      kind='resnet',  # 'efficientnet_lite0': depth to stem are not its own
      depth=50,
      widths=(64, 128, 256, 512),
      groups=1,  # ResNeXt-101-32x4d: 32 and 4, with depth 101
      group_width=64,
      stem='conv7',
      norm='frozen_batch_norm',
      norm_groups=32,
      frozen_stages=1,
      pretrained='',  # file of ImageNet weights: .pth, .safetensors, .npz
    ),
    neck=dict(channels=256, num_levels=5),
    head=dict(channels=256, num_convs=4, norm_groups=32, prior_probability=0.01),
  )

  c.optimizer = dict(
    kind='sgd',
    learning_rate=c.get_ref('batch_size').to_float() * (0.01 / 16),
    momentum=0.9,
    weight_decay=1e-4,  # on all that is trained, biases and norms too
    clip_norm=0.0,  # 0: none
  )
  c.schedule = dict(
    kind='step',
    warmup_steps=500,
    warmup_ratio=0.001,
    decay_epochs=(8, 11),
    decay_factor=0.1,
    final_ratio=0.0,  # of the rate, at the end of a cosine
    extensions=(),  # by train.py --extend: the epochs before, and how
  )
  c.decode = dict(
    score_threshold=0.05,
    candidates_per_level=1000,
    nms='greedy',  # 'iou_guided': by the quality branch, with the best class score
    nms_iou=0.6,
    max_detections=100,
    min_size=0.0,
    variance_voting=0.0,  # KL-Loss's sigma_t, 0.01 in its code; 0: off
    uncertainty_penalty=False,  # True: score x (1 - mean std), as Gaussian YOLOv3
  )
  return c
