"""SimPool: y = (sum over positions of a_i v_i^gamma)^(1/gamma), with a = softmax over positions of q^T k_i / sqrt(C).

q = Q mean(x), k_i = K n_i, v_i = n_i - min(n) + eps, with n_i the layer-normalised position i, and Q and K learned C x
C matrices. Psomas, Kakogeorgiou, Karantzalos and Avrithis, Keep It SimPool: Who Said Supervised Transformers Suffer
from Attention Deficit? (ICCV 2023). The minimum is taken over a sample's positions and channels: over the batch, as
would also make v positive, a sample's result would depend on its neighbours. As n is normalised, y has lost the scale
of x.
"""

import torch
from torch import Tensor, nn

from trainer.pools._checks import positive
from trainer.pools._power import power_mean
from trainer.pools._tokens import tokens


class SimPool(nn.Module):
    """[B, C, H, W] -> [B, C]: the average attends to the positions; their power mean, weighted by that.

    Has 3.3 million parameters at C = 1280.

    Args:
        gamma: the exponent, above 0; 2 in the paper for convolutional networks, 1.25 for transformers.
        eps: what is added to v, above 0: the gradient of a root at zero is infinite.
    """

    def __init__(self, channels: int, gamma: float = 2.0, eps: float = 1e-6):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.query = nn.Linear(channels, channels, bias=False)
        self.key = nn.Linear(channels, channels, bias=False)
        self.gamma = positive("gamma", gamma)
        self.eps = positive("eps", eps)

    def forward(self, x: Tensor) -> Tensor:
        points = self.norm(tokens(x))
        query, key = self.query(x.mean(dim=(2, 3))), self.key(points)
        with torch.autocast(x.device.type, enabled=False):
            scores = (key.float() @ query.float().unsqueeze(2)).transpose(1, 2) * x.shape[1] ** -0.5  # [B, 1, HW]
            values = points.float().transpose(1, 2)
            values = values - values.amin(dim=(1, 2), keepdim=True) + self.eps
            return power_mean(values, self.gamma, scores.log_softmax(dim=2)).to(x.dtype)
