"""Squeeze-and-excitation, then average: y_c = s_c mean(x_c), with s = sigmoid(W2 relu(W1 mean(x) + b1) + b2).

Hu, Shen and Sun, Squeeze-and-Excitation Networks (CVPR 2018). y is a function of the averages alone.
"""

import trainer.archs  # noqa: F401  imports torchvision without torch._dynamo: 0.4 s instead of 3.3

# isort: split
from torch import Tensor, nn
from torchvision.ops.misc import SqueezeExcitation

from trainer.pools._checks import whole


class SqueezeExcitationPool(nn.Module):
    """[B, C, H, W] -> [B, C]: the average of each channel, scaled by a gate that sees all averages.

    Args:
        ratio: the gate has C / ratio hidden units, from 1 up; 16 in the paper. It has 4 at least: a single ReLU may
            well be dead from the start.
    """

    def __init__(self, channels: int, ratio: int = 16):
        super().__init__()
        self.excitation = SqueezeExcitation(channels, max(4, channels // whole("ratio", ratio)))

    def forward(self, x: Tensor) -> Tensor:
        return self.excitation(x).mean(dim=(2, 3)).to(x.dtype)
