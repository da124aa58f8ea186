"""Spatial pyramid pooling: y_c = sum over bins b of w_cb max over b of x_c, with learned weights w.

A level of n has n x n bins that cover the map. He, Zhang, Ren and Sun, Spatial Pyramid Pooling in Deep Convolutional
Networks for Visual Recognition (ECCV 2014), where all bins go to the classifier; the weights bring them back to C. On a
map smaller than a level its bins overlap, and at 1x1 all are the same. On CUDA the backward of overlapping bins adds in
no fixed order: two runs differ by rounding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.pools._checks import wholes


class SpatialPyramidPool(nn.Module):
    """[B, C, H, W] -> [B, C]: a weighted sum of the maxima of each channel over a pyramid of bins.

    The weights start so that y_c is the mean over levels of the mean over the level's bins.

    Args:
        levels: bins along a side, a list of whole numbers from 1 up; the paper has 1, 2, 4 among others.
    """

    def __init__(self, channels: int, levels: tuple[int, ...] = (1, 2, 4)):
        super().__init__()
        self.levels = wholes("levels", levels)
        weights = torch.cat([torch.full((n * n,), 1 / (len(self.levels) * n * n)) for n in self.levels])
        self.weight = nn.Parameter(weights.repeat(channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        bins = torch.cat([F.adaptive_max_pool2d(x, n).flatten(2) for n in self.levels], dim=2)
        return (bins * self.weight).sum(dim=2).to(x.dtype)
