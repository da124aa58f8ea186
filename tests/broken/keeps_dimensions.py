"""shape on resnet56: [B, C, 1, 1], as adaptive pooling gives it."""

from torch import nn


class CustomPool(nn.Module):
    def forward(self, x):
        return nn.functional.adaptive_avg_pool2d(x, 1)
