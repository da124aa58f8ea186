"""shape on resnet56: the weights come back beside the result."""

from torch import nn


class CustomPool(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)), x
