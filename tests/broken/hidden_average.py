"""repeatability on resnet56: a running average outside of buffers."""

from torch import nn


class CustomPool(nn.Module):
    def __init__(self):
        super().__init__()
        self.average = None

    def forward(self, x):
        pooled = x.mean((2, 3))
        now = pooled.detach().mean(0)
        self.average = now if self.average is None else 0.9 * self.average + 0.1 * now
        return pooled - self.average if self.training else pooled
