"""finite-output on resnet56: squares in float16 end at 65504."""

from torch import nn


class CustomPool(nn.Module):
    def forward(self, x):
        return x.half().square().mean((2, 3)).to(x.dtype)
