"""GeM of magnitudes, mixed with the deviation, both with the sign of the mean: y = (1 - k) GeM + k Std.

GeM_c = (mean of (|x| + 1e-6)^p)^(1/p) sign(mean_c), p clamped to [1, 20]; Std_c = sqrt(Var_c + 1e-6) sign(mean_c); k =
0.1 s(v), with s the logistic function. Published as qwen/qwen3.6-plus, agent. It leaves maps of one position alone.
"""

import torch
from torch import nn


class CustomPool(nn.Module):
    """[B, C, H, W] -> [B, C]. Learns p and v.

    Args:
        p: the start of the exponent.
    """

    def __init__(self, p=3.0):
        super().__init__()
        self.p = nn.Parameter(torch.tensor(float(p)))
        self.v = nn.Parameter(torch.tensor(0.0))

    def forward(self, x):
        mean = x.mean((2, 3))
        if x.shape[2] * x.shape[3] == 1:
            return mean
        x = x.float()  # powers of bfloat16 have two digits
        p = self.p.clamp(1, 20)
        gem = (x.abs() + 1e-6).pow(p).mean((2, 3)).pow(1 / p)
        deviation = (x.var((2, 3), correction=0) + 1e-6).sqrt()
        k = 0.1 * torch.sigmoid(self.v)
        return (((1 - k) * gem + k * deviation) * mean.sign()).to(mean.dtype)
