"""ResNet for 32x32 images: three stages of 16, 32 and 64 channels.

He et al., Deep Residual Learning for Image Recognition (CVPR 2016), section 4.2, built from torchvision's basic
block. Shortcuts that change the shape are 1x1 projections with batch norm; depth 56 has 0.86M parameters with 100
classes.
"""

from torch import nn
from torchvision.models.resnet import BasicBlock, conv1x1, conv3x3


def features(depth: int) -> nn.Module:
    """Return [B, 3, 32, 32] -> [B, 64, 8, 8]; `depth` is 6n+2, n blocks a stage."""
    blocks = (depth - 2) // 6
    return nn.Sequential(
        conv3x3(3, 16),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        _stage(16, 16, blocks, stride=1),
        _stage(16, 32, blocks, stride=2),
        _stage(32, 64, blocks, stride=2),
    )


def last(side: int) -> tuple[nn.Module, tuple[int, int, int]]:
    return BasicBlock(64, 64), (64, side, side)


def head(channels: int, classes: int) -> nn.Module:
    return nn.Linear(channels, classes)


def _stage(channels_in: int, channels: int, blocks: int, stride: int) -> nn.Module:
    changes_shape = stride != 1 or channels_in != channels
    shortcut = (
        nn.Sequential(conv1x1(channels_in, channels, stride), nn.BatchNorm2d(channels)) if changes_shape else None
    )
    rest = [BasicBlock(channels, channels) for _ in range(blocks - 1)]
    return nn.Sequential(BasicBlock(channels_in, channels, stride, shortcut), *rest)
