"""Lp pooling: y_c = (mean over positions of |x_c|^p)^(1/p), with a fixed p.

Sermanet, Chintala and LeCun, Convolutional Neural Networks Applied to House Numbers Digit Classification (ICPR 2012);
theirs is weighted by a Gaussian window, and a global pool has none. Blind to the sign; at 1x1 it is the absolute value.
"""

import torch
from torch import Tensor, nn

from trainer.pools._checks import positive
from trainer.pools._power import power_mean


class LpPool(nn.Module):
    """[B, C, H, W] -> [B, C]: the power mean of the absolute values of each channel. No parameters.

    Args:
        p: the exponent, above 0; 2 is the root mean square, 1 the mean absolute value.
        eps: what absolute values are clamped to from below, above 0: the gradient of a root at zero is infinite.
    """

    def __init__(self, p: float = 2.0, eps: float = 1e-6):
        super().__init__()
        self.p = positive("p", p)
        self.eps = positive("eps", eps)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return power_mean(x.float().flatten(2).abs().clamp(min=self.eps), self.p).to(x.dtype)
