"""gradient on resnet56: nothing below it learns."""

from torch import nn


class CustomPool(nn.Module):
    def forward(self, x):
        return x.detach().mean((2, 3))
