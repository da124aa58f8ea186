"""time-limit on resnet56: a loop until something that does not happen."""

from torch import nn


class CustomPool(nn.Module):
    def forward(self, x):
        while x.mean() < x.amin():
            x = x * 0.5
        while True:
            x = x.relu()
