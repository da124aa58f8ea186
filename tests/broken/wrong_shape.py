"""shape on vgg16bn: the reduction is over the channels, which at 8x8 leaves 64 values too."""

from torch import nn


class CustomPool(nn.Module):
    def forward(self, x):
        return x.mean(1).flatten(1)
