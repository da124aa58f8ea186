"""Local importance pooling, globally: y_c = sum of w x_c / sum of w, with w = exp(12 sigmoid(G(x)_c)).

Gao, Wang and Wu, LIP: Local Importance-based Pooling (ICCV 2019). G is a 1x1 bottleneck over channels with a ReLU in
it. The paper's G ends in an instance normalisation, which has no value on a map of 1x1, and is left out.
"""

import torch
from torch import Tensor, nn

from trainer.pools._checks import whole
from trainer.pools._tokens import average


class LocalImportancePool(nn.Module):
    """[B, C, H, W] -> [B, C]: each channel weighted by a learned importance of its own at each position.

    Args:
        width: channels between the two layers of G, from 1 up, at most C; 64 keeps it at 165,000 parameters at
            C = 1280.
    """

    def __init__(self, channels: int, width: int = 64):
        super().__init__()
        width = min(whole("width", width), channels)
        self.importance = nn.Sequential(nn.Conv2d(channels, width, 1), nn.ReLU(), nn.Conv2d(width, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        logits = self.importance(x)
        with torch.autocast(x.device.type, enabled=False):
            # The softmax of the exponents is w / sum of w.
            weights = (12 * logits.float().sigmoid()).flatten(2).softmax(dim=2)
            return average(x.float().flatten(2), weights).to(x.dtype)
