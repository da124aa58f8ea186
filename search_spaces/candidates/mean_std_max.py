"""Mean, deviation and maximum: y = mean + s(a) std + (1 - s(a)) (max - mean), with s the logistic function.

Published as anthropic/claude-opus-4.6, agent. Over one position it is the mean: there is no deviation, and the maximum
is the mean.
"""

import torch
from torch import nn


class CustomPool(nn.Module):
    """[B, C, H, W] -> [B, C]. Learns one number.

    Args:
        start: of a.
        eps: under the root of the variance, whose gradient on a constant channel is infinite without it.
    """

    def __init__(self, start=0.5, eps=1e-6):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(float(start)))
        self.eps = eps

    def forward(self, x):
        mean = x.mean((2, 3))
        if x.shape[2] * x.shape[3] == 1:
            return mean
        deviation = (x.var((2, 3), correction=0) + self.eps).sqrt()
        share = torch.sigmoid(self.a)
        return mean + share * deviation + (1 - share) * (x.amax((2, 3)) - mean)
