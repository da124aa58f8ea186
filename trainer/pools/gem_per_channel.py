"""Generalised-mean pooling with an exponent for each channel: y_c = (mean of max(x_c, eps)^p_c)^(1/p_c).

Radenovic, Tolias and Chum, Fine-tuning CNN Image Retrieval with No Human Annotation (TPAMI 2019), who state this form
and use the one with a shared exponent (`gem`). Weight decay draws every p_c to 0, where it has no value.
"""

import torch
from torch import Tensor, nn

from trainer.pools._checks import positive
from trainer.pools._power import power_mean


class GeMPerChannel(nn.Module):
    """[B, C, H, W] -> [B, C]: the power mean of each channel, an exponent for each.

    Args:
        p: the exponent that all start from, above 0; 3 in the paper.
        eps: what activations are clamped to from below, above 0: a power of a negative number is NaN, and the gradient
            of a root at zero is infinite.
    """

    def __init__(self, channels: int, p: float = 3.0, eps: float = 1e-6):
        super().__init__()
        self.p = nn.Parameter(torch.full((channels,), float(positive("p", p))))
        self.eps = positive("eps", eps)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return power_mean(x.float().flatten(2).clamp(min=self.eps), self.p).to(x.dtype)
