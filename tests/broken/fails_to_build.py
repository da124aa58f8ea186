"""build on resnet56: the constructor raises."""

import torch
from torch import nn


class CustomPool(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(-1))

    def forward(self, x):
        return x.mean((2, 3))
