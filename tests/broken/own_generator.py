"""repeatability on resnet56: a generator that nobody seeds."""

import numpy as np
from torch import nn

DRAWS = np.random.default_rng()


class CustomPool(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)) * (1 + float(DRAWS.normal()) * self.training)
