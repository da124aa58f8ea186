"""run on resnet56: two shapes that do not go together."""

import torch
from torch import nn


class CustomPool(nn.Module):
    def forward(self, x):
        return x @ torch.ones(3, 3)
