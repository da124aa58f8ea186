"""MobileNetV2 with the ImageNet strides: torchvision's features, then the pool and one linear layer, no dropout.

Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks (CVPR 2018). The total stride of 32 takes a 32x32
image to 1x1. Initial weights as torchvision's.
"""

from torch import nn
from torchvision.models import mobilenet_v2

from trainer.archs.vgg import head

__all__ = ["features", "head"]


def features() -> nn.Module:
    """[B, 3, 32, 32] -> [B, 1280, 1, 1]."""
    return mobilenet_v2(weights=None).features
