"""The control: y = m + W2 gelu(W1 m + b1) + b2, with m the average over positions.

A pool with parameters of its own may win because of them, whatever it pools. This one sees the averages alone and is
as large as it is told, to a hidden unit. No paper; GELU, as a single ReLU may well be dead from the start.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from trainer.pools._checks import whole


class AverageMlpPool(nn.Module):
    """[B, C, H, W] -> [B, C]: the average, and a residual perceptron C -> h -> C of a chosen size on top of it.

    Args:
        parameters: how many it is to have, from 1 up; 10,000 is the choice here. They are h (2C + 1) + C, and h is
            the whole number from 1 up that comes nearest: never further away than C, unless h = 1 is too many.
    """

    def __init__(self, channels: int, parameters: int = 10000):
        super().__init__()
        hidden = max(1, round((whole("parameters", parameters) - channels) / (2 * channels + 1)))
        self.first = nn.Linear(channels, hidden)
        self.second = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(dim=(2, 3))
        return (mean + self.second(F.gelu(self.first(mean)))).to(x.dtype)
