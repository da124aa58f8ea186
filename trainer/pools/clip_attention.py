"""CLIP's attention pooling: y = A(t_0, t), with t_0 = mean(x) + e_0 and t_i = x_i + e_i for every position i.

A is multi-head attention of the mean to itself and all positions, e a learned embedding of the positions. Radford et
al., Learning Transferable Visual Models From Natural Language Supervision (ICML 2021).
"""

import torch
from torch import Tensor, nn

from trainer.pools._checks import whole
from trainer.pools._tokens import Attention, resize, tokens


class ClipAttentionPool(nn.Module):
    """[B, C, H, W] -> [B, C]: the average attends to all positions.

    Args:
        size: the embedding is size x size, from 1 up, and interpolated bilinearly to the map; 8 fits the 8x8 maps of
            the ResNets. Its entries start with a variance of 1 / C, as in the paper's code.
        width: dimension of all heads together, from 1 up, at most C. 64 keeps it at 412,000 parameters at C = 1280;
            the paper has C.
        heads: from 1 up; the largest divisor of the width that is not above it is taken. The paper has 32 to 64 at
            2048 channels and more; 8 is the choice here.
    """

    def __init__(self, channels: int, size: int = 8, width: int = 64, heads: int = 8):
        super().__init__()
        self.mean_position = nn.Parameter(torch.randn(1, 1, channels) * channels**-0.5)
        self.positions = nn.Parameter(torch.randn(1, channels, whole("size", size), size) * channels**-0.5)
        self.attention = Attention(channels, channels, whole("width", width), whole("heads", heads))

    def forward(self, x: Tensor) -> Tensor:
        points = tokens(x + resize(self.positions, x.shape[2], x.shape[3]))
        mean = tokens(x).mean(dim=1, keepdim=True) + self.mean_position
        return self.attention(mean, torch.cat([mean, points], dim=1)).squeeze(1).to(x.dtype)
