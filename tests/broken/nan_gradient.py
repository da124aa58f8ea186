"""finite-gradient on resnet56: the root of a variance of zero."""

from torch import nn


class CustomPool(nn.Module):
    def forward(self, x):
        return x.var((2, 3), correction=0).sqrt()
