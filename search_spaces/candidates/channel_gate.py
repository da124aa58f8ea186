"""Learned channel gate: y_c = g_c mean_c + (1 - g_c) max_c, g_c = s(w_c t), with s the logistic function.

Published as deepseek-reasoner, agent (LCGP). There are 2,048 weights whatever the architecture: the first C are used,
and channels beyond them take the mean.
"""

import torch
from torch import nn


class CustomPool(nn.Module):
    """[B, C, H, W] -> [B, C]. Starts as (mean + max) / 2; learns w [2048] and the temperature t."""

    WEIGHTS = 2048

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(self.WEIGHTS))
        self.t = nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        mean, largest = x.mean((2, 3)), x.amax((2, 3))
        gated = min(x.shape[1], self.WEIGHTS)
        gate = torch.sigmoid(self.w[:gated] * self.t)
        mixed = gate * mean[:, :gated] + (1 - gate) * largest[:, :gated]
        return mixed if gated == x.shape[1] else torch.cat((mixed, mean[:, gated:]), dim=1)
