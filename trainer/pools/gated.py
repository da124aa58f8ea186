"""Gated pooling: y_c = (1 - s_c) mean(x_c) + s_c max(x_c), with s_c = sigmoid(sum over positions of w x_c).

Lee, Gallagher and Tu, Generalizing Pooling Functions in Convolutional Neural Networks (AISTATS 2016), "gated
max-average pooling"; one learned mask w for all channels, as theirs for a layer. The sum grows with the map, so that on
large activations the gate is 0 or 1 and learns nothing.
"""

import torch
from torch import Tensor, nn

from trainer.pools._checks import whole
from trainer.pools._tokens import resize


class GatedPool(nn.Module):
    """[B, C, H, W] -> [B, C]: a blend of the mean and the maximum of each channel that depends on the channel's map.

    Args:
        size: the mask is size x size, from 1 up, and interpolated to the map; 8 fits the 8x8 maps of the ResNets. It
            starts at zero: every share at 0.5.
    """

    def __init__(self, size: int = 8):
        super().__init__()
        self.mask = nn.Parameter(torch.zeros(1, 1, whole("size", size), size))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            values = x.float()
            share = (values * resize(self.mask, x.shape[2], x.shape[3])).sum(dim=(2, 3)).sigmoid()
            return torch.lerp(values.mean(dim=(2, 3)), values.amax(dim=(2, 3)), share).to(x.dtype)
