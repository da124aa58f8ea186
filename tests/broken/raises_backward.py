"""run on resnet56: forward works, backward does not."""

from torch import nn


class CustomPool(nn.Module):
    def forward(self, x):
        out = x.mean((2, 3)).sigmoid()
        root = out.sqrt()
        out.mul_(2)
        return root.sqrt_()
