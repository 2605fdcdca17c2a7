"""GFL, ResNet-50, 12 epochs, COCO 2017: the authors' recipe.

  python scripts/train.py --config=configs/gfl_r50_fpn_1x_coco.py \
    --workdir=runs/r50_1x --config.model.backbone.pretrained=resnet50.pth

Needs COCO 2017 prepared under `data.data_dir` (by scripts/prepare_data.py with this
config, or by TFDS in TFRecord files), and torchvision's ImageNet weights of ResNet-50.
Published: AP 40.2 on val2017 (paper, mmdetection). Not run here yet.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """Every value of a training run; all other configs start from this one."""
  c = ml_collections.ConfigDict()
  c.seed = 0
  c.parallel = 'jit'  # or 'pmap', which gives the same numbers
  c.batch_size = 16  # images of one step, on all devices together
  c.accumulate = 1  # micro-batches that a device runs one after the other in a step
  c.epochs = 12.0
  c.ema_decay = 0.0  # of the running average of the parameters; 0: no average
  c.log_every_steps = 50
  c.eval_every_epochs = 1.0
  c.checkpoint_every_steps = 1000
  c.tensorboard = False

  c.data = dict(
    name='coco/2017',  # or 'coco_folder', 'ambiguous_shapes', 'file'
    path='',  # COCO's zips, a coco_folder, or a file made by scripts/prepare_data.py
    data_dir='datasets',  # folder of the data that TFDS has prepared
    num_train=0,  # scenes to draw, for ambiguous_shapes only
    num_validation=0,  # the same for evaluation
    canvas=(800, 1344),  # height, width; for portrait images (1344, 800)
    short_side=(800, 800),  # range of its length; training draws a whole number of it
    max_long_side=1333,
    zoom=(1.0, 1.0),  # range of a random factor on the size; the excess is cropped
    flip=0.5,  # probability of mirroring a training image
    max_boxes=100,  # of one image
    keep_empty=False,  # whether to train on images without boxes
    cache=False,  # whether to keep the decoded images in memory
    max_bad_images=10,  # training images that may be missing or damaged
    mean=(123.675, 116.28, 103.53),  # of ImageNet, for R, G, B in 0..255
    std=(58.395, 57.12, 57.375),
  )

  # A dense detector is five choices: the sections from here to edge_loss name one each.
  c.assignment = dict(  # which anchors learn which box
    kind='atss',  # or 'fcos', 'max_iou'
    top_k=9,  # atss: candidate anchors of a box on each level
    center_radius=1.5,  # fcos: points this near the center, in strides; 0: whole box
    regress_range=8.0,  # fcos: the largest distance of a level, in strides
    positive_iou=0.5,  # max_iou: an anchor is positive from this IoU on
    negative_iou=0.4,  # max_iou: an anchor is background below this IoU
  )
  c.score = dict(  # where the quality of a box is predicted
    kind='joint',  # or 'none', 'centerness', 'iou', 'centerness_guided', 'iou_guided'
    weight=1.0,  # of the loss of a separate quality branch
  )
  c.class_loss = dict(
    kind='quality_focal',  # or 'focal', 'gaussian_focal', 'varifocal'
    weight=1.0,
    beta=2.0,  # quality_focal: exponent of |quality - score|
    alpha=0.25,  # the other losses
    gamma=2.0,  # the other losses
    min_overlap=0.7,  # gaussian_focal: IoU of a box shifted by the Gaussian's radius
  )
  c.box = dict(  # what a side of a box is
    kind='general',  # a distribution over bins; or 'dirac', 'gaussian'
    start=0.0,  # general: position of the first bin, in strides
    stop=16.0,  # general: position of the last bin, in strides
    num_bins=17,  # one for each stride from 0 to 16
    scale=4.0,  # dirac, gaussian: the distance before training, in strides
  )
  c.edge_loss = dict(  # the loss of each side, beside the box loss
    kind='distribution_focal',  # or 'none'; gaussian boxes: 'gaussian_nll', 'kl'
    weight=0.25,
  )
  c.box_loss = dict(
    kind='giou',  # or 'iou'
    weight=2.0,
    weighting='class_score',  # of positives; or 'centerness', 'iou', 'uniform'
    min_weight_sum=1.0,  # least sum of the weights; on 8 GPUs the authors' is 8
    max_positives_per_image=1024,  # room for them in a batch of one image
  )

  # In strides: from a cell's corner to its point, and the side of its anchor.
  c.points = dict(offset=0.0, anchor_scale=8)
  c.model = dict(
    num_classes=80,
    dtype='float32',  # of backbone, pyramid and towers; or 'bfloat16'
    remat=(),  # of 'stage1' .. 'stage4', 'head': computed twice, to save memory
    backbone=dict(
      kind='resnet',  # or 'efficientnet_lite0', which ignores depth, ..., stem
      depth=50,
      widths=(64, 128, 256, 512),  # channels of the four stages, before expansion
      groups=1,  # ResNeXt-101-32x4d has groups=32, group_width=4, depth=101
      group_width=64,
      stem='conv7',  # or 'patch4'
      norm='frozen_batch_norm',  # or 'group_norm'
      norm_groups=32,
      frozen_stages=1,  # stages that are not trained, with the stem; 0: none
      pretrained='',  # ImageNet weights: a file .pth, .safetensors or .npz
    ),
    neck=dict(channels=256, num_levels=5),
    head=dict(channels=256, num_convs=4, norm_groups=32, prior_probability=0.01),
  )

  c.optimizer = dict(
    kind='sgd',  # or 'adamw'
    learning_rate=c.get_ref('batch_size').to_float() * (0.01 / 16),
    momentum=0.9,
    weight_decay=1e-4,  # on all trained parameters, biases and norms too
    clip_norm=0.0,  # largest norm of the gradient; 0: no limit
  )
  c.schedule = dict(
    kind='step',  # or 'cosine', 'constant'
    warmup_steps=500,
    warmup_ratio=0.001,  # of the learning rate, at step 0
    decay_epochs=(8, 11),  # step: after these epochs,
    decay_factor=0.1,  # the rate is multiplied by this
    final_ratio=0.0,  # cosine: of the learning rate, at the end
    extensions=(),  # filled in by scripts/train.py --extend
  )
  c.decode = dict(
    score_threshold=0.05,
    candidates_per_level=1000,
    nms='greedy',  # or 'iou_guided': boxes of the highest predicted IoU are kept
    nms_iou=0.6,
    max_detections=100,
    min_size=0.0,  # boxes with a side of at most this many pixels are dropped
    variance_voting=0.0,  # KL-Loss's sigma_t (0.01 in its code); 0: no voting
    uncertainty_penalty=False,  # whether to multiply scores by (1 - mean std)
  )
  return c
