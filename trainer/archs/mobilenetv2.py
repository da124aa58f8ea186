"""MobileNetV2 for 32x32 images, width 1.0: torchvision's inverted residuals, then the pool and one linear layer.

Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks (CVPR 2018), Table 2. That network is made for
images of 224 pixels, and its strides of 32 in all leave one position of a 32x32 image. For CIFAR the stem has stride 1,
and so has the second stage: 8 in all, 4x4 positions. With the paper's stage strides and a stem of stride 1 it is 2x2.
"""

from torch import nn
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.ops import Conv2dNormActivation

STAGES = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))  # expansion, C, blocks
STEM, WIDTH = 32, 1280  # channels at either end

STRIDES = 1, 1, 2, 2, 1, 2, 1  # of the stages: the likelier reading, until a measurement says (1, 2, 2, 2, 1, 2, 1)


def features(stem: int = 1, strides: tuple[int, ...] = STRIDES) -> nn.Module:
    """Return [B, 3, 32, 32] -> [B, 1280, S, S], where S is 32 by all strides: the stem's and each stage's first."""
    layers: list[nn.Module] = [_layer(3, STEM, kernel_size=3, stride=stem)]
    channels = STEM
    for (expansion, width, blocks), stride in zip(STAGES, strides, strict=True):
        for index in range(blocks):
            layers.append(InvertedResidual(channels, width, 1 if index else stride, expansion))
            channels = width
    return nn.Sequential(*layers, _layer(channels, WIDTH, kernel_size=1))


def last(side: int) -> tuple[nn.Module, tuple[int, int, int]]:
    channels = STAGES[-1][1]
    return _layer(channels, WIDTH, kernel_size=1), (channels, side, side)


def head(channels: int, classes: int) -> nn.Module:
    return nn.Linear(channels, classes)


def _layer(channels: int, width: int, kernel_size: int, stride: int = 1) -> nn.Module:
    return Conv2dNormActivation(channels, width, kernel_size, stride, activation_layer=nn.ReLU6)
