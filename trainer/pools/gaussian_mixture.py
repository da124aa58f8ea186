"""Fisher vectors of a learned mixture of Gaussians: y = W unit(power([G_1, H_1, ..., G_K, H_K])) + b.

G_k = sum over positions of g_ik d_ik / (n sqrt(pi_k)) and H_k = sum of g_ik (d_ik^2 - 1) / (n sqrt(2 pi_k)), with d_ik
= (z_i - mu_k) / sigma_k, z_i the reduced position, g_ik the posterior probability of component k, and n the number of
positions. power(v) = v / sqrt(|v| + eps) and unit(v) = v / sqrt(|v|^2 + eps). Perronnin, Sanchez and Mensink, Improving
the Fisher Kernel for Large-Scale Image Classification (ECCV 2010); learned end to end as in Zhang, Xue and Dana, Deep
TEN: Texture Encoding Network (CVPR 2017), by the loss alone, not by likelihood.
"""

import torch
from torch import Tensor, nn

from trainer.pools._checks import whole
from trainer.pools._tokens import tokens, unit


class GaussianMixturePool(nn.Module):
    """[B, C, H, W] -> [B, C]: a linear layer over the deviations of the positions from diagonal Gaussians.

    Args:
        components: K, from 1 up; 256 in Perronnin et al., for whole images. 4 is the choice here for 64 positions.
        width: channels that C is reduced to before, from 1 up, at most C; 32 keeps it at 370,000 parameters at
            C = 1280.
    """

    def __init__(self, channels: int, components: int = 4, width: int = 32):
        super().__init__()
        width = min(whole("width", width), channels)
        self.reduce = nn.Conv2d(channels, width, 1, bias=False)
        self.weight_logits = nn.Parameter(torch.zeros(whole("components", components)))
        self.means = nn.Parameter(torch.randn(components, width) * width**-0.5)
        self.log_sigmas = nn.Parameter(torch.zeros(components, width))
        self.project = nn.Linear(2 * components * width, channels)

    def forward(self, x: Tensor) -> Tensor:
        points = tokens(self.reduce(x)).float()
        with torch.autocast(x.device.type, enabled=False):
            deviations = (points[:, :, None] - self.means) * (-self.log_sigmas).exp()  # [B, HW, K, width]
            squares = deviations.square()
            log_weights = self.weight_logits.log_softmax(dim=0)
            log_densities = -0.5 * squares.sum(dim=3) - self.log_sigmas.sum(dim=1)
            posteriors = (log_weights + log_densities).softmax(dim=2)[..., None] / points.shape[1]
            scales = (-0.5 * log_weights).exp()[:, None]
            first = (posteriors * deviations).sum(dim=1) * scales
            second = (posteriors * (squares - 1)).sum(dim=1) * scales * 0.5**0.5
            vector = torch.cat([first, second], dim=2).flatten(1)
            vector = unit(vector * (vector.abs() + 1e-6).rsqrt())
        return self.project(vector).to(x.dtype)
