"""Batch norm in the kernels around it: in the one that makes its map, and in those that read it.

Where a map is read, batch norm is a factor and an offset by channel, and its gradient is two factors and an offset; so
neither what is normalised nor its gradient need be stored. The sums that they come from are taken by the kernel that
makes the map, or the gradient, as it stores it: see `norm`. Folded so, rounding adds 2^-24 of |mean| / deviation to a
value; that the map is stored in bfloat16 adds 2^-9 of it.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportIndexIssue=false, reportReturnType=false
# Triton reads these functions, Python does not run them: their types are not Python's.

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from trainer.device.kernels import norm


class Folded(NamedTuple):
    """A batch norm whose map other kernels make and read; all but numbers are fp32 [C].

    Attributes:
        saved: [2, C], mean and 1/deviation of the batch; None in evaluation.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    momentum: float
    eps: float
    saved: Tensor | None

    @classmethod
    def of(cls, layer: nn.BatchNorm2d) -> Folded:
        saved = torch.empty(2, layer.num_features, device=layer.weight.device) if layer.training else None
        running = layer.running_mean, layer.running_var
        return cls(layer.weight, layer.bias, *running, layer.momentum, layer.eps, saved)  # type: ignore[arg-type]

    @property
    def read(self) -> tuple[Tensor | float | None, ...]:
        """What a kernel takes that reads the map, for `folded`."""
        return self.weight, self.bias, self.saved, self.running_mean, self.running_var, self.eps

    @property
    def moments(self) -> tuple[Tensor | float | None, ...]:
        """What a kernel takes that makes the map, for `norm.share_moments`."""
        return self.saved, self.running_mean, self.running_var, self.momentum, self.eps


NOTHING = (None,) * 5 + (0.0,)  # in place of `read`, where a map is read as it is


@triton.jit
def folded(weight, bias, saved, running_mean, running_var, eps, columns, CHANNELS: tl.constexpr):
    """Factor and offset: what is normalised is x factor + offset."""
    if saved is None:
        mean, inverse = norm.running_statistics(running_mean, running_var, eps, columns, CHANNELS)
    else:
        mean, inverse = norm.statistics(saved, columns, CHANNELS)
    scale, shift = norm.affine_of(weight, bias, inverse, columns, CHANNELS)
    return scale, shift - mean * scale


@triton.jit
def folded_slopes(weight, saved, affine, rows, columns, CHANNELS: tl.constexpr):
    """Two factors and an offset: the gradient of x is gradient factor + x other + offset."""
    mean, inverse = norm.statistics(saved, columns, CHANNELS)
    level, slope = norm.slopes_of(affine, inverse, rows, columns, CHANNELS)
    scale = tl.load(weight + columns, mask=columns < CHANNELS, other=0.0) * inverse
    return scale, -slope * scale, (mean * slope - level) * scale
