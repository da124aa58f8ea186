"""Power-mean pooling with a bounded exponent: y_c = (mean over positions of max(x_c, eps)^p)^(1/p).

p = 1 + (p_max - 1) sigmoid(theta), with a learned theta. The function is GeM of Radenovic, Tolias and Chum, Fine-tuning
CNN Image Retrieval with No Human Annotation (TPAMI 2019); the bounds are chosen here, between the average (p = 1) and
p_max, and weight decay draws p to their middle instead of to 0.
"""

import math

import torch
from torch import Tensor, nn

from trainer.pools._checks import positive
from trainer.pools._power import power_mean


class PowerMeanPool(nn.Module):
    """[B, C, H, W] -> [B, C]: the power mean of each channel, one exponent in (1, p_max) for all.

    Args:
        p: the exponent to start from, above 1 and below p_max; 3 as in GeM.
        p_max: the upper bound; at 10 the power mean of 64 values is at least 66 % of the largest.
        eps: what activations are clamped to from below, above 0.
    """

    def __init__(self, p: float = 3.0, p_max: float = 10.0, eps: float = 1e-6):
        super().__init__()
        if not 1 < p < p_max:
            raise ValueError(f"p must be above 1 and below p_max, which is {p_max}, got {p}")
        self.theta = nn.Parameter(torch.tensor([math.log((p - 1) / (p_max - p))]))
        self.p_max = p_max
        self.eps = positive("eps", eps)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            p = 1 + (self.p_max - 1) * self.theta.sigmoid()
            return power_mean(x.float().flatten(2).clamp(min=self.eps), p).to(x.dtype)
