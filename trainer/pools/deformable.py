"""Deformable convolution, then average: y = mean over positions of x + E relu(D(R x)).

R and E are 1x1 convolutions to `width` channels and back. D is a 3x3 convolution that samples its input at learned
offsets, which a second 3x3 convolution computes from it. Dai et al., Deformable Convolutional Networks (ICCV 2017).
On CUDA the backward of torchvision's kernel adds in no fixed order: two runs differ by rounding.
"""

import trainer.archs  # noqa: F401  imports torchvision without torch._dynamo: 0.4 s instead of 3.3

# isort: split
import torch
from torch import Tensor, nn
from torchvision.ops.deform_conv import DeformConv2d

from trainer.pools._checks import whole


class DeformablePool(nn.Module):
    """[B, C, H, W] -> [B, C]: a deformable convolution in a bottleneck with a residual, then the average.

    Args:
        width: channels in the bottleneck, from 1 up, at most C; 64 keeps it at 212,000 parameters at C = 1280.
    """

    def __init__(self, channels: int, width: int = 64):
        super().__init__()
        width = min(whole("width", width), channels)
        self.reduce = nn.Conv2d(channels, width, 1)
        self.offsets = nn.Conv2d(width, 2 * 3 * 3, 3, padding=1)  # two for each of the kernel's nine points
        self.convolution = DeformConv2d(width, width, 3, padding=1)
        self.expand = nn.Conv2d(width, channels, 1)
        # As in the paper: it starts as a plain convolution. The offsets have a gradient from there.
        nn.init.zeros_(self.offsets.weight)
        nn.init.zeros_(self.offsets.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor) -> Tensor:
        # In fp32: an offset rounded to 8 bits points elsewhere, and the kernel does not exist in bfloat16.
        with torch.autocast(x.device.type, enabled=False):
            values = x.float()
            reduced = self.reduce(values)
            deformed = self.convolution(reduced, self.offsets(reduced))
            return (values + self.expand(deformed.relu())).mean(dim=(2, 3)).to(x.dtype)
