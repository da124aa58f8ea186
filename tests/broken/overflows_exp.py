"""finite-output on resnet56: exponentials without a shift."""

from torch import nn


class CustomPool(nn.Module):
    def forward(self, x):
        return x.exp().mean((2, 3)).log()
