"""finite-output on vgg16bn: the unbiased deviation of one value is 0/0."""

from torch import nn


class CustomPool(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)) + x.std((2, 3))
