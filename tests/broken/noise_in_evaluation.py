"""eval-noise on resnet56: dropout that is always on."""

from torch import nn


class CustomPool(nn.Module):
    def forward(self, x):
        return nn.functional.dropout(x, 0.5, training=True).mean((2, 3))
