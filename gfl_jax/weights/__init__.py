"""Parameters in: from mmdetection, torchvision, timm and EfficientNet-Lite."""

from gfl_jax.weights.mmdet import from_mmdet, from_torchvision_resnet

__all__ = ['from_mmdet', 'from_torchvision_resnet']
