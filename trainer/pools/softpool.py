"""SoftPool: y_c = sum over positions of w x_c, with w = exp(x_c) / sum over positions of exp(x_c).

Stergiou, Poppe and Kalliatakis, Refining Activation Downsampling with SoftPool (ICCV 2021). How sharp it is depends on
the scale of the activations: small ones are averaged.
"""

import torch
from torch import Tensor, nn

from trainer.pools._tokens import average


class SoftPool(nn.Module):
    """[B, C, H, W] -> [B, C]: each channel weighted by its own softmax. No parameters."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            flat = x.float().flatten(2)
            return average(flat, flat.softmax(dim=2)).to(x.dtype)
