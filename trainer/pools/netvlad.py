"""NetVLAD: y = W unit([unit(V_1), ..., unit(V_K)]) + b, with V_k = sum over positions of a_ik (z_i - c_k).

z_i is the reduced position, a_i = softmax over clusters of w_k^T z_i + b_k its soft assignment, c_k a learned centre,
and unit(v) = v / sqrt(|v|^2 + eps). Arandjelovic, Gronat, Torii, Pajdla and Sivic, NetVLAD: CNN Architecture for Weakly
Supervised Place Recognition (CVPR 2016). The centres start at random, not from k-means. As V is normalised, y has lost
the scale of the map.
"""

import torch
from torch import Tensor, nn

from trainer.pools._checks import whole
from trainer.pools._tokens import tokens, unit


class NetVladPool(nn.Module):
    """[B, C, H, W] -> [B, C]: a linear layer over the residuals of the positions to learned centres.

    Args:
        clusters: K, from 1 up; 64 in the paper, for whole images. 8 is the choice here for 64 positions.
        width: channels that C is reduced to before, from 1 up, at most C; 64 keeps it at 740,000 parameters at
            C = 1280.
    """

    def __init__(self, channels: int, clusters: int = 8, width: int = 64):
        super().__init__()
        width = min(whole("width", width), channels)
        self.reduce = nn.Conv2d(channels, width, 1, bias=False)
        self.assign = nn.Linear(width, whole("clusters", clusters))
        self.centres = nn.Parameter(torch.randn(clusters, width) * width**-0.5)
        self.project = nn.Linear(clusters * width, channels)

    def forward(self, x: Tensor) -> Tensor:
        points = tokens(self.reduce(x)).float()
        with torch.autocast(x.device.type, enabled=False):
            shares = self.assign(points).softmax(dim=2).transpose(1, 2)  # [B, K, HW]
            residuals = shares @ points - shares.sum(dim=2, keepdim=True) * self.centres
            vector = unit(unit(residuals).flatten(1))
        return self.project(vector).to(x.dtype)
