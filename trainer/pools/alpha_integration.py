"""Alpha-integration pooling: y_c = (mean over positions of max(x_c, eps)^q)^(1/q), with q = (1 - alpha) / 2.

Eom and Choi, Alpha-Integration Pooling for Convolutional Neural Networks (arXiv 2018), after Amari, Integration of
Stochastic Models by Minimizing alpha-Divergence (Neural Computation 2007); alpha is learned. alpha = -1 is the average,
1 the geometric mean (the limit), 3 the harmonic mean, -infinity the maximum, infinity the minimum. It is the power mean
of GeM in another parameter, in which weight decay draws to q = 1/2. Behind a ReLU the zeros count as eps, and from
alpha = 1 up they decide the result.
"""

import torch
from torch import Tensor, nn

from trainer.pools._checks import positive
from trainer.pools._power import power_mean

SMALLEST = 1e-5


class AlphaIntegrationPool(nn.Module):
    """[B, C, H, W] -> [B, C]: the alpha mean of each channel, one alpha for all.

    Args:
        alpha: where it starts, any number; -3 is the root mean square, the choice here between average and maximum.
        eps: what activations are clamped to from below, above 0: the mean is defined for positive numbers.
    """

    def __init__(self, alpha: float = -3.0, eps: float = 1e-6):
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor([float(alpha)]))
        self.eps = positive("eps", eps)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            # At q = 0 the formula is 0/0. q is kept 1e-5 away from it, where the value is off the limit by a share of
            # 5e-6 times the variance of log x. The gradient in q divides by q^2 = 1e-10, hence float64: fp32 rounds at
            # 1e-7.
            q = (1 - self.alpha.double()) / 2
            away = torch.where(q < 0, q.clamp(max=-SMALLEST), q.clamp(min=SMALLEST))
            q = q + (away - q).detach()  # a clamp alone would leave alpha = 1 without a gradient
            return power_mean(x.double().flatten(2).clamp(min=self.eps), q).to(x.dtype)
