"""Grid pooling: y_c = sum over cells of w_c,cell mean over the cell of x_c, with learned weights w.

The map is cut into k x k cells. An adaptive average pool and a depthwise layer on top of it; no paper introduces it. If
k does not divide the sides of the map the cells overlap, and y starts near the average instead of at it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.pools._checks import whole


class AdaptiveGridPool(nn.Module):
    """[B, C, H, W] -> [B, C]: a weighted sum of the means of each channel over the cells of a grid.

    The weights start at 1 / k^2, the mean over cells.

    Args:
        k: cells along a side, from 1 up; 2, the four quadrants, is the choice here.
    """

    def __init__(self, channels: int, k: int = 2):
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels, whole("k", k) ** 2), 1 / k**2))
        self.k = k

    def forward(self, x: Tensor) -> Tensor:
        return (F.adaptive_avg_pool2d(x, self.k).flatten(2) * self.weight).sum(dim=2).to(x.dtype)
