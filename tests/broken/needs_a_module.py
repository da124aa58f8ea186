"""import on resnet56: a package that is not installed."""

import pooling_tricks_that_nobody_has  # noqa: F401
from torch import nn


class CustomPool(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))
