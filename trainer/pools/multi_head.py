"""Multi-head attention pooling without projections: y_h = sum over positions of a_h,i x_h,i for each head h.

a_h = softmax over positions of q_h^T x_h,i / sqrt(d), where x_h,i is the head's slice of d channels and q_h a learned
query. India, Safari and Hernando, Self Multi-Head Attention for Speaker Recognition (Interspeech 2019).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.pools._checks import whole
from trainer.pools._tokens import largest_divisor


class MultiHeadPool(nn.Module):
    """[B, C, H, W] -> [B, C]: each slice of the channels averaged over positions with attention weights of its own.

    Args:
        heads: how many slices, from 1 up; the largest divisor of C that is not above it is taken. 8 as in Vaswani et
            al., Attention Is All You Need (NeurIPS 2017). The queries, C numbers in all, start at zero: the average.
    """

    def __init__(self, channels: int, heads: int = 8):
        super().__init__()
        heads = largest_divisor(channels, whole("heads", heads))
        self.query = nn.Parameter(torch.zeros(heads, 1, channels // heads))

    def forward(self, x: Tensor) -> Tensor:
        slices = x.flatten(2).unflatten(1, (self.query.shape[0], -1)).transpose(2, 3)  # [B, heads, HW, d]
        query = self.query.expand(x.shape[0], -1, -1, -1)
        return F.scaled_dot_product_attention(query, slices, slices).flatten(1).to(x.dtype)
