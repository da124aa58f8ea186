"""VGG with batch norm: the features of Simonyan and Zisserman's paper, and a classifier of two linear layers.

Simonyan and Zisserman, Very Deep Convolutional Networks (ICLR 2015), in torchvision's configurations. Convolutions have
no bias, which the batch norm after each would take out again. Five max-pools take a 32x32 image to 1x1.
"""

from torch import nn
from torchvision.models.vgg import cfgs

from trainer.archs.dropout import Dropout

CONFIGURATIONS = {11: "A", 13: "B", 16: "D", 19: "E"}
HIDDEN = 512


def features(depth: int) -> nn.Module:
    """Return [B, 3, 32, 32] -> [B, 512, 1, 1]; `depth` is 11, 13, 16 or 19."""
    layers: list[nn.Module] = []
    channels = 3
    for width in cfgs[CONFIGURATIONS[depth]]:
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2))
        else:
            convolution = nn.Conv2d(channels, width, 3, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            channels = width
    return nn.Sequential(*layers)


def last(side: int) -> tuple[nn.Module, tuple[int, int, int]]:
    convolution = nn.Conv2d(512, 512, 3, padding=1, bias=False)
    layers = convolution, nn.BatchNorm2d(512), nn.ReLU(inplace=True), nn.MaxPool2d(2)
    return nn.Sequential(*layers), (512, 2 * side, 2 * side)


def head(channels: int, classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(channels, HIDDEN), nn.ReLU(inplace=True), Dropout(0.5), nn.Linear(HIDDEN, classes))
