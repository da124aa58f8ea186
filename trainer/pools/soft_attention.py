"""Attention pooling: y = sum over positions of a_i x_i, with a = softmax over positions of v^T tanh(U x_i + b).

Ilse, Tomczak and Welling, Attention-based Deep Multiple Instance Learning (ICML 2018). All channels share the weights.
"""

import torch
from torch import Tensor, nn

from trainer.pools._checks import whole
from trainer.pools._tokens import average


class SoftAttentionPool(nn.Module):
    """[B, C, H, W] -> [B, C]: an average over positions, weighted by learned scores.

    Args:
        width: hidden units of the score, from 1 up; 64 is the choice here.
    """

    def __init__(self, channels: int, width: int = 64):
        super().__init__()
        hidden = nn.Conv2d(channels, whole("width", width), 1)
        # No bias at the end: it adds the same to all scores, and the softmax takes it out again.
        self.score = nn.Sequential(hidden, nn.Tanh(), nn.Conv2d(width, 1, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.score(x)
        with torch.autocast(x.device.type, enabled=False):
            return average(x.float().flatten(2), scores.float().flatten(2).softmax(dim=2)).to(x.dtype)
