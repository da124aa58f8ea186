"""VGG with batch norm: torchvision's feature layers, then the pool and one linear layer.

Simonyan and Zisserman, Very Deep Convolutional Networks (ICLR 2015). Five max-pools take a 32x32 image to 1x1. Initial
weights as torchvision's VGG: Kaiming normal (fan out) for convolutions, N(0, 0.01) for the linear layer.
"""

from torch import nn
from torchvision.models.vgg import cfgs, make_layers

CONFIGURATIONS = {11: "A", 13: "B", 16: "D", 19: "E"}


def features(depth: int) -> nn.Module:
    """[B, 3, 32, 32] -> [B, 512, 1, 1]; `depth` is 11, 13, 16 or 19."""
    net = make_layers(cfgs[CONFIGURATIONS[depth]], batch_norm=True)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return net


def head(channels: int, classes: int) -> nn.Module:
    linear = nn.Linear(channels, classes)
    nn.init.normal_(linear.weight, 0, 0.01)
    nn.init.zeros_(linear.bias)
    return linear
