"""resume on resnet56: a counter that no checkpoint holds."""

from torch import nn


class CustomPool(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x.mean((2, 3)) if self.calls < 1000 else x.amax((2, 3))
