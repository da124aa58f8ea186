"""Cross-attention pooling: y = A(q, N(x)), with one learned query q and N a layer normalisation over channels.

A is multi-head attention of the query to all positions. Touvron et al., Augmenting Convolutional Networks with
Attention-based Aggregation (arXiv 2021), without its perceptron. As N normalises each position, the scale of x is lost.
"""

import torch
from torch import Tensor, nn

from trainer.pools._checks import whole
from trainer.pools._tokens import Attention, tokens


class CrossAttentionPool(nn.Module):
    """[B, C, H, W] -> [B, C]: one learned query attends to all positions.

    Args:
        width: dimension of all heads together, from 1 up, at most C; 64 keeps it at 333,000 parameters at C = 1280.
        heads: from 1 up; the largest divisor of the width that is not above it is taken. 8 as in Vaswani et al.,
            Attention Is All You Need (NeurIPS 2017).
    """

    def __init__(self, channels: int, width: int = 64, heads: int = 8):
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 1, channels))
        self.norm = nn.LayerNorm(channels)
        self.attention = Attention(channels, channels, whole("width", width), whole("heads", heads))

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(self.query, self.norm(tokens(x))).squeeze(1).to(x.dtype)
