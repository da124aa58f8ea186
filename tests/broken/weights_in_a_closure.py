"""state-dict on resnet56: random weights that no state_dict has."""

import torch
from torch import nn


class CustomPool(nn.Module):
    def __init__(self):
        super().__init__()
        weights = torch.rand(64).tolist()
        self.score = lambda x: x * x.new_tensor(weights)

    def forward(self, x):
        return self.score(x.mean((2, 3)))
