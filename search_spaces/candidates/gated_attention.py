"""Attention gated by variation: y_c = mean_c + g_c (<a, x_c> - mean_c).

a, over the positions, is the softmax of the mean over channels times softplus(k): one map for all channels. The gate
g_c = s(Var_c / (|mean_c| + sqrt(Var_c) + 1e-6) + b) opens where a channel varies; s is the logistic function. Published
as openai/gpt-5.4, agent. Over one position it is the mean.
"""

import torch
import torch.nn.functional as F
from torch import nn


class CustomPool(nn.Module):
    """[B, C, H, W] -> [B, C]. Learns two numbers.

    Args:
        sharpness: the start of k.
        bias: the start of b.
    """

    def __init__(self, sharpness=1.0, bias=-0.5):
        super().__init__()
        self.k = nn.Parameter(torch.tensor(float(sharpness)))
        self.b = nn.Parameter(torch.tensor(float(bias)))

    def forward(self, x):
        mean = x.mean((2, 3))
        if x.shape[2] * x.shape[3] == 1:
            return mean
        flat = x.flatten(2)
        attention = (flat.mean(1) * F.softplus(self.k)).softmax(1)
        attended = (flat * attention[:, None, :]).sum(2)
        variance = flat.var(2, correction=0)
        # The root's gradient is infinite at 0, where a channel is constant: 1e-12 moves no float32 result.
        gate = torch.sigmoid(variance / (mean.abs() + (variance + 1e-12).sqrt() + 1e-6) + self.b)
        return mean + gate * (attended - mean)
