"""late-parameter on resnet56: made in the first training step, when the optimizer is there already."""

import torch
from torch import nn


class CustomPool(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = None

    def forward(self, x):
        if self.training and self.weight is None:
            self.weight = nn.Parameter(torch.ones(x.shape[1]))
        pooled = x.mean((2, 3))
        return pooled if self.weight is None else pooled * self.weight
