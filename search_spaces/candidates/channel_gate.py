"""Learnable channel-wise gating: y_c = a_c mean_c + (1 - a_c) max_c, a_c = sigmoid(w_c), one logit for each channel.

The architecture decides C: `channels` is given to whoever asks for it.
"""

import torch
from torch import nn


class CustomPool(nn.Module):
    """[B, C, H, W] -> [B, C]. Starts as (mean + max) / 2.

    Args:
        channels: C.
    """

    def __init__(self, channels):
        super().__init__()
        self.logit = nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        share = torch.sigmoid(self.logit)
        return share * x.mean((2, 3)) + (1 - share) * x.amax((2, 3))
