"""Ordinal pooling: y_c = sum over ranks r of w_r x_c,(r), with x_c,(1) >= x_c,(2) >= ... and learned weights w.

Deliege, Istasse, Kumar, De Vleeschouwer and Van Droogenbroeck, Ordinal Pooling (BMVC 2019). w is the softmax of learned
logits, so it is positive and sums to one: average, maximum, minimum, median and top-k are special cases. The weights
are shared by all channels, and the logits interpolated, so that their number does not depend on the map.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.pools._checks import whole
from trainer.pools._tokens import average


class OrdinalPool(nn.Module):
    """[B, C, H, W] -> [B, C]: the sorted values of each channel, weighted by rank.

    Args:
        ranks: how many logits are learned, from 1 up, interpolated linearly to the H*W ranks, the first for the
            largest value and the last for the smallest. 16 is the choice here. They start at zero: the average.
    """

    def __init__(self, ranks: int = 16):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(1, 1, whole("ranks", ranks)))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            ordered = x.float().flatten(2).sort(dim=2, descending=True).values
            logits = F.interpolate(self.logits, ordered.shape[2], mode="linear", align_corners=True)
            return average(ordered, logits.softmax(dim=2)).to(x.dtype)
