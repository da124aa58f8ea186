"""device on resnet56: a tensor that is no buffer."""

import torch
from torch import nn


class CustomPool(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.full((1, 1), 0.5)

    def forward(self, x):
        return x.mean((2, 3)) * self.scale
