"""device on resnet56: a list hides modules from .to() and from the optimizer."""

from torch import nn


class CustomPool(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = [nn.Identity(), nn.LazyLinear(1)]

    def forward(self, x):
        score = self.layers[1](x.flatten(2).transpose(1, 2))
        return (x.flatten(2) * score.softmax(1).transpose(1, 2)).sum(2)
