"""Atrous spatial pyramid pooling, then average: y = mean over positions of relu(W [branches of x] + b).

The branches are a 1x1 convolution, a dilated 3x3 convolution for each rate, and the average over the map in every
position; each ends in a ReLU. Chen, Papandreou, Schroff and Adam, Rethinking Atrous Convolution for Semantic Image
Segmentation (arXiv 2017), without batch normalisation. On a map smaller than a rate the dilated kernel sees little but
its centre.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.pools._checks import whole, wholes


class AsppPool(nn.Module):
    """[B, C, H, W] -> [B, C]: context at several scales around each position, projected to C channels and averaged.

    Args:
        width: channels of each branch, from 1 up; 64 keeps it at 2.8 million parameters at C = 1280. 256 in the paper.
        rates: the dilations, a list of whole numbers from 1 up; the paper has 6, 12 and 18 for maps of 64x64 and more,
            an 8x8 map has no room for them.
    """

    # torchvision's ASPP normalises by batch, which one sample of 1x1 cannot be trained with, and drops half of the
    # result: hence plain convolutions.
    def __init__(self, channels: int, width: int = 64, rates: tuple[int, ...] = (1, 2, 4)):
        super().__init__()
        self.point = nn.Conv2d(channels, whole("width", width), 1)
        self.dilated = nn.ModuleList(
            nn.Conv2d(channels, width, 3, padding=rate, dilation=rate) for rate in wholes("rates", rates)
        )
        self.image = nn.Conv2d(channels, width, 1)
        self.project = nn.Conv2d((2 + len(self.dilated)) * width, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        local = [self.point(x), *(convolution(x) for convolution in self.dilated)]
        image = self.image(x.mean(dim=(2, 3), keepdim=True)).expand_as(local[0])
        return F.relu(self.project(F.relu(torch.cat([*local, image], dim=1)))).mean(dim=(2, 3)).to(x.dtype)
