"""Pooling by multi-head attention: y = mean over seeds of M(S, F(x)), with learned seed vectors S.

M(S, Z) = N(H + F'(H)) with H = N'(S + A(S, Z)): A is multi-head attention of the seeds to the positions, F and F' are
two-layer perceptrons, N and N' layer normalisations. Lee, Lee, Kim, Kosiorek, Choi and Teh, Set Transformer (ICML
2019), where the seeds are not averaged but go on. As y is normalised, it has lost the scale of the map.
"""

import torch
from torch import Tensor, nn

from trainer.pools._checks import whole
from trainer.pools._tokens import Attention, bottleneck, tokens


class AttentionSeedsPool(nn.Module):
    """[B, C, H, W] -> [B, C]: learned seeds attend to the positions, and are averaged.

    Args:
        seeds: how many, from 1 up; the paper has from 1 to 4, by task.
        width: dimension of all heads together and of the perceptrons' hidden layer, from 1 up, at most C. 64 keeps it
            at 670,000 parameters at C = 1280; the paper has C.
        heads: from 1 up; the largest divisor of the width that is not above it is taken. 8 is the choice here.
    """

    def __init__(self, channels: int, seeds: int = 4, width: int = 64, heads: int = 8):
        super().__init__()
        # Of length one: with H normalised, seeds of length sqrt(C) would drown what they attend to.
        self.seeds = nn.Parameter(torch.randn(1, whole("seeds", seeds), channels) * channels**-0.5)
        self.before = bottleneck(channels, whole("width", width))
        self.attention = Attention(channels, channels, width, whole("heads", heads))
        self.norm_attention = nn.LayerNorm(channels)
        self.after = bottleneck(channels, width)
        self.norm_after = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm_attention(self.seeds + self.attention(self.seeds, self.before(tokens(x))))
        return self.norm_after(hidden + self.after(hidden)).mean(dim=1).to(x.dtype)
