"""CBAM, then average: y = mean over positions of s_i (g * x_i).

g = sigmoid(F(mean over positions of x) + F(max over positions of x)), a gate for each channel; s = sigmoid(conv of
[mean over channels, max over channels] of g * x), a gate for each position. F is a perceptron with a ReLU. Woo, Park,
Lee and Kweon, CBAM: Convolutional Block Attention Module (ECCV 2018), without batch normalisation after the
convolution.
"""

import torch
from torch import Tensor, nn

from trainer.pools._checks import whole


class CbamPool(nn.Module):
    """[B, C, H, W] -> [B, C]: channels and positions gated, then averaged.

    Args:
        ratio: the channels' perceptron has C / ratio hidden units, from 1 up; 16 in the paper. It has 4 at least: a
            single ReLU may well be dead from the start.
        kernel: side of the convolution, odd, from 1 up; 7 in the paper.
    """

    def __init__(self, channels: int, ratio: int = 16, kernel: int = 7):
        super().__init__()
        if whole("kernel", kernel) % 2 == 0:
            raise ValueError(f"kernel must be an odd number from 1 up, got {kernel}")
        hidden = max(4, channels // whole("ratio", ratio))
        self.perceptron = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))
        self.convolution = nn.Conv2d(2, 1, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        gate = (self.perceptron(x.mean(dim=(2, 3))) + self.perceptron(x.amax(dim=(2, 3)))).sigmoid()
        gated = x * gate[:, :, None, None]
        summary = torch.cat([gated.mean(dim=1, keepdim=True), gated.amax(dim=1, keepdim=True)], dim=1)
        return (gated * self.convolution(summary).sigmoid()).mean(dim=(2, 3)).to(x.dtype)
