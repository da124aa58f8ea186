"""Latent attention: y = mean over positions of h_i + F(N'(h_i)), with h_i = x_i + A(N(x_i), L) and learned latents L.

Every position attends to the latents, a dictionary that is the same for all inputs; F is a two-layer perceptron with a
GELU, N and N' are layer normalisations. Lee et al., NV-Embed: Improved Techniques for Training LLMs as Generalist
Embedding Models (ICLR 2025). Residuals and normalisations, which the paper's formula lacks, are placed as in a pre-norm
transformer block. Positions do not see each other before the average.
"""

import torch
from torch import Tensor, nn

from trainer.pools._checks import whole
from trainer.pools._tokens import Attention, tokens


class LatentAttentionPool(nn.Module):
    """[B, C, H, W] -> [B, C]: positions attend to learned latents, go through a perceptron, and are averaged.

    Args:
        latents: how many, from 1 up; the paper has 512 for a language model, 32 is the choice here.
        width: dimension of the latents, of all heads together and of the perceptron's hidden layer, from 1 up, at most
            C; 64 keeps it at 346,000 parameters at C = 1280.
        heads: from 1 up; the largest divisor of the width that is not above it is taken. 8 in the paper.
    """

    def __init__(self, channels: int, latents: int = 32, width: int = 64, heads: int = 8):
        super().__init__()
        width = min(whole("width", width), channels)
        self.latents = nn.Parameter(torch.randn(1, whole("latents", latents), width))
        self.norm_attention = nn.LayerNorm(channels)
        self.attention = Attention(channels, width, width, whole("heads", heads))
        self.perceptron = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, width), nn.GELU(), nn.Linear(width, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        points = tokens(x)
        points = points + self.attention(self.norm_attention(points), self.latents)
        return (points + self.perceptron(points)).mean(dim=1).to(x.dtype)
