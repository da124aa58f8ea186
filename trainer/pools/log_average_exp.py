"""Log-average-exp pooling: y_c = t log(mean over positions of exp(x_c / t)), with a learned temperature t.

Lowe, Trappenberg and Oore, LogAvgExp Provides a Principled and Performant Global Pooling Operator (arXiv 2021). t to
infinity is the average, t to 0 the maximum. At 1x1 it is the identity and t learns nothing but weight decay, which
draws log t to 0.
"""

import math

import torch
from torch import Tensor, nn

from trainer.pools._checks import positive
from trainer.pools._power import log_mean_exp


class LogAverageExpPool(nn.Module):
    """[B, C, H, W] -> [B, C]: a smooth maximum of each channel, one temperature for all.

    Args:
        t: the temperature to start from, above 0; with 1 it is the logarithm of the mean of exp(x). What is learned is
            log t, so that t stays positive.
    """

    def __init__(self, t: float = 1.0):
        super().__init__()
        self.log_t = nn.Parameter(torch.tensor([math.log(positive("t", t))]))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            t = self.log_t.exp()
            return (t * log_mean_exp(x.float().flatten(2) / t)).to(x.dtype)
