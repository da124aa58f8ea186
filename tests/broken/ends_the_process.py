"""run on resnet56: the process is gone."""

import os

from torch import nn


class CustomPool(nn.Module):
    def forward(self, x):
        return os._exit(3)
