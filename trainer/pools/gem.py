"""Generalised-mean pooling: y_c = (mean over positions of max(x_c, eps)^p)^(1/p), with a learned p.

Radenovic, Tolias and Chum, Fine-tuning CNN Image Retrieval with No Human Annotation (TPAMI 2019). p = 1 is the
average, p to infinity the maximum.
"""

import torch
from torch import Tensor, nn


class GeM(nn.Module):
    """[B, C, H, W] -> [B, C]: the power mean of each channel, one exponent for all.

    Args:
        p: the exponent to start from; 3 in the paper.
        eps: what activations are clamped to from below: a power of a negative number is NaN, and the gradient of a
            root at zero is infinite.
    """

    def __init__(self, p: float = 3.0, eps: float = 1e-6):
        super().__init__()
        self.p = nn.Parameter(torch.tensor([float(p)]))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # fp32 inside: eps^3 = 1e-18 underflows in half precision, and x^3 overflows it from 41 on.
        with torch.autocast(x.device.type, enabled=False):
            clamped = x.float().clamp(min=self.eps)
            return clamped.pow(self.p).mean(dim=(2, 3)).pow(1 / self.p).to(x.dtype)
