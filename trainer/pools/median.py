"""Median pooling: y_c = the median over positions of x_c, the mean of the middle two where their number is even.

A classical robust mean; no paper introduces it as a global pool. Behind a ReLU it is 0 for every channel that is active
on less than half of the map, and the gradient reaches one or two positions.
"""

from torch import Tensor, nn


class MedianPool(nn.Module):
    """[B, C, H, W] -> [B, C]: the median of each channel. No parameters.

    torch.median gives the lower of the middle two; this gives their mean, as statistics does.
    """

    def forward(self, x: Tensor) -> Tensor:
        ordered = x.flatten(2).sort(dim=2).values
        positions = ordered.shape[2]
        return ordered[:, :, (positions - 1) // 2 : positions // 2 + 1].mean(dim=2)
