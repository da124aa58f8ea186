"""Covariance pooling (iSQRT-COV): y = W triu(S^(1/2)) + b, with S the covariance of the channels over positions.

The root comes from coupled Newton-Schulz iterations: with A = S / tr(S), Y_0 = A and Z_0 = I, they are Y <- Y (3I - ZY)
/ 2 and Z <- (3I - ZY) Z / 2, and sqrt(tr(S)) Y approaches S^(1/2). Li, Xie, Wang and Gao, Towards Faster Training of
Global Covariance Pooling Networks by Iterative Matrix Square Root Normalization (CVPR 2018). At 1x1 the covariance is
zero and y a constant: there is nothing to learn from. Small eigenvalues converge slowly, their roots come out too
small.
"""

import torch
from torch import Tensor, nn

from trainer.pools._checks import positive, whole


class CovariancePool(nn.Module):
    """[B, C, H, W] -> [B, C]: a linear layer over the square root of the covariance of the reduced channels.

    Args:
        width: channels that C is reduced to before, from 1 up, at most C; 32 keeps it at 718,000 parameters at
            C = 1280. The paper reduces 2048 to 256.
        iterations: of Newton and Schulz, from 1 up; 5 in the paper.
        eps: what is added to the diagonal of S, above 0: a covariance of zero has no trace to divide by.
    """

    def __init__(self, channels: int, width: int = 32, iterations: int = 5, eps: float = 1e-5):
        super().__init__()
        width = min(whole("width", width), channels)
        self.reduce = nn.Conv2d(channels, width, 1, bias=False)  # a bias would be centred away
        self.project = nn.Linear(width * (width + 1) // 2, channels)
        self.iterations = whole("iterations", iterations)
        self.eps = positive("eps", eps)

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.reduce(x)
        with torch.autocast(x.device.type, enabled=False):
            points = reduced.float().flatten(2)
            centred = points - points.mean(dim=2, keepdim=True)
            one = torch.eye(points.shape[1], device=x.device)
            covariance = centred @ centred.transpose(1, 2) / points.shape[2] + self.eps * one
            trace = covariance.diagonal(dim1=1, dim2=2).sum(dim=1)[:, None, None]
            root, inverse = covariance / trace, one
            for _ in range(self.iterations):
                step = 1.5 * one - 0.5 * inverse @ root
                root, inverse = root @ step, step @ inverse
            rows, columns = torch.triu_indices(*root.shape[1:], device=x.device)
            upper = (trace.sqrt() * root)[:, rows, columns]
        return self.project(upper).to(x.dtype)
