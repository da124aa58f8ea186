"""Spatial-channel attention pooling: y_c = a_c avg_c + (1 - a_c) max_c, with avg_c = sum_i s_i x_ci / sum_i s_i.

s_i = sigmoid(f(x_i)) scores position i by a network of 1x1 convolutions, and a_c = sigmoid(g_c(avg)) gates the weighted
average of a channel against its maximum.
"""

import torch
from torch import nn


class CustomPool(nn.Module):
    """[B, C, H, W] -> [B, C].

    Args:
        channels: C.
        ratio: by which the hidden layer of the scores is smaller than C.
    """

    def __init__(self, channels, ratio=4):
        super().__init__()
        hidden = max(1, channels // ratio)
        self.score = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, 1, 1))
        self.gate = nn.Linear(channels, channels)

    def forward(self, x):
        weights = torch.sigmoid(self.score(x))  # [B, 1, H, W], never all zero: a sigmoid has no zero
        average = (x * weights).sum((2, 3)) / weights.sum((2, 3)).clamp_min(1e-6)
        share = torch.sigmoid(self.gate(average))
        return share * average + (1 - share) * x.amax((2, 3))
