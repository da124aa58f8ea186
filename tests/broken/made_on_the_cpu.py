"""device on resnet56: a new tensor without device=x.device."""

import torch
from torch import nn


class CustomPool(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)) * torch.linspace(0, 1, x.shape[1])
