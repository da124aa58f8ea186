"""in-place on resnet56: the backbone's activations are overwritten."""

from torch import nn


class CustomPool(nn.Module):
    def forward(self, x):
        return x.sub_(x.mean()).mean((2, 3))
