"""dtype on resnet56: float64 goes on to the linear layer."""

from torch import nn


class CustomPool(nn.Module):
    def forward(self, x):
        return x.double().mean((2, 3))
