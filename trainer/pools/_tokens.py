"""What the pools share that take a map as a set of vectors, one for each position."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def tokens(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, HW, C]."""
    return x.flatten(2).transpose(1, 2)


def largest_divisor(number: int, at_most: int) -> int:
    """The largest divisor of a number that is not above `at_most`."""
    return next(divisor for divisor in range(min(number, at_most), 0, -1) if number % divisor == 0)


def resize(grid: Tensor, height: int, width: int) -> Tensor:
    """[1, C, h, w] -> [1, C, H, W], bilinear.

    Without antialias a map of 1x1 would see the four cells in the middle of the grid, and no other would be learned.
    """
    if grid.shape[2:] == (height, width):
        return grid
    return F.interpolate(grid, (height, width), mode="bilinear", align_corners=False, antialias=True)


def unit(x: Tensor, eps: float = 1e-6) -> Tensor:
    """x / sqrt(sum over the last dimension of x^2 + eps): of length one, with a bounded gradient at zero."""
    return x * (x.square().sum(-1, keepdim=True) + eps).rsqrt()


class Attention(nn.Module):
    """Multi-head attention whose heads share `width` dimensions instead of all channels.

    nn.MultiheadAttention works in the dimension of its queries: at 1280 channels its four matrices are 6.6 million
    parameters, almost three times all of MobileNetV2. With `width` equal to the channels this is the same
    function. Keys have no bias: it adds the same to all scores of a query, and the softmax takes it out again.

    Args:
        channels: dimension of the queries and of the result.
        context: dimension of what is attended to.
        width: dimension of all heads together; never more than `channels`.
        heads: the largest divisor of the width that is not above this is taken.
    """

    def __init__(self, channels: int, context: int, width: int, heads: int):
        super().__init__()
        width = min(width, channels)
        self.heads = largest_divisor(width, heads)
        self.query = nn.Linear(channels, width)
        self.key = nn.Linear(context, width, bias=False)
        self.value = nn.Linear(context, width)
        self.out = nn.Linear(width, channels)

    def forward(self, queries: Tensor, context: Tensor) -> Tensor:
        """[B or 1, Q, channels] and [B or 1, N, context] -> [B, Q, channels]."""
        batch = max(queries.shape[0], context.shape[0])
        query, key, value = (
            projected.expand(batch, -1, -1).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for projected in (self.query(queries), self.key(context), self.value(context))
        )
        return self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


def bottleneck(channels: int, width: int) -> nn.Sequential:
    """Two linear layers with a ReLU between them, channels -> min(width, channels) -> channels."""
    width = min(width, channels)
    return nn.Sequential(nn.Linear(channels, width), nn.ReLU(), nn.Linear(width, channels))


def average(x: Tensor, weights: Tensor) -> Tensor:
    """sum over positions of w_i x_i: [B, C, N] and [B, 1 or C, N] -> [B, C]."""
    return torch.sum(x * weights, dim=2)
