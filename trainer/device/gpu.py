"""The same network, faster on a GPU; and streams that nobody shares.

A training step of these networks is hundreds of kernels of a few microseconds, most of which read maps that the one
before has just written. Layers change how they compute, not what: outputs and gradients agree with torch's to rounding,
and parameters are the same tensors under the same names.
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from trainer import compat
from trainer.device import kernels

STREAMS = 32  # that torch has for a device; the next one it gives is the first again
SMALL = 2**14  # elements of an image's map: 16 x 32 x 32
CEILINGS = {nn.ReLU: math.inf, nn.ReLU6: 6.0}

_free: dict[torch.device, list[torch.cuda.Stream]] = {}


def lend_stream(device: torch.device, borrower: object) -> torch.cuda.Stream:
    """Return a stream for as long as the borrower lives, which no other of the first `STREAMS` borrowers has.

    Not `torch.cuda.Stream` each time: matrix products keep a workspace of 32 MiB a stream for good (torch 2.11), and a
    graph that ends takes that of its stream with it (2.13), from under another's graphs if torch gave them the same.
    """
    free = _free.setdefault(device, [])
    stream = free.pop() if free else torch.cuda.Stream(device)
    weakref.finalize(borrower, free.append, stream).atexit = False
    return stream


class Together:
    """What the layers of a network leave to be done for all of them in one kernel.

    Batch norms leave the count of their batches, from which nothing is computed; convolutions of cuDNN leave the cast
    of their weights to bfloat16, and that of the gradients back: 52 and 70 kernels of a step of MobileNetV2.
    """

    def __init__(self, counts: Tensor | None, casting: list[LibraryConv2d]):
        self._counts = counts  # [norms] int64, of which each norm has one
        self._weights = [conv.weight for conv in casting]
        self._halves = [cast(Tensor, conv.half_weight) for conv in casting]

    def before_forward(self, *_: object) -> None:
        """Cast the weights as they are now."""
        if self._halves:
            with torch.no_grad():
                compat.copy_all(self._halves, self._weights)

    def after_backward(self) -> None:
        """Put the gradients where an optimizer looks for them, and count a batch more."""
        pairs = [(w, h) for w, h in zip(self._weights, self._halves, strict=True) if h.grad is not None]
        if pairs:
            gradients = [torch.empty_like(weight) for weight, _ in pairs]
            compat.copy_all(gradients, [cast(Tensor, half.grad) for _, half in pairs])
            for (weight, half), gradient in zip(pairs, gradients, strict=True):
                weight.grad, half.grad = gradient, None
        if self._counts is not None:
            self._counts.add_(1)


def speed_up(features: nn.Module, precision: str) -> Callable[[], None]:
    """Swap the layers of a network that is to train on a GPU, in place; return what to do after a backward pass."""
    norms = [module for module in features.modules() if type(module) is nn.BatchNorm2d and module.momentum is not None]
    counts = torch.stack([cast(Tensor, norm.num_batches_tracked) for norm in norms]) if norms else None
    for norm, count in zip(norms, () if counts is None else counts.unbind(), strict=True):
        norm.__class__ = FusedBatchNorm2d
        norm.num_batches_tracked = count
    casting: list[LibraryConv2d] = []
    for conv in [module for module in features.modules() if type(module) is nn.Conv2d]:
        if kernels.depthwise.fits(conv):
            conv.__class__ = DepthwiseConv2d
        elif precision != "fp32" and kernels.convolution.fits(conv):
            conv.__class__ = NarrowConv2d
        else:
            conv.__class__ = LibraryConv2d
            if precision == "bf16":
                casting.append(cast(LibraryConv2d, conv))
                casting[-1].half_weight = conv.weight.detach().to(torch.bfloat16).requires_grad_()
    for module in list(features.modules()):
        if type(module) is BasicBlock:
            module.__class__ = FusedBasicBlock
            for norm in (module.bn1, module.bn2):
                cast(FusedBatchNorm2d, norm).ceiling = CEILINGS[type(module.relu)]
        elif isinstance(module, nn.Sequential):
            for index, (first, second) in enumerate(itertools.pairwise(module)):
                if isinstance(first, FusedBatchNorm2d) and type(second) in CEILINGS:
                    first.ceiling = CEILINGS[type(second)]
                    module[index + 1] = nn.Identity()
    together = Together(counts, casting)
    features.register_forward_pre_hook(together.before_forward)
    return together.after_backward


def _by_kernel(input: Tensor) -> bool:
    """Whether Triton's kernels run where it is."""
    return input.is_cuda


class FusedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that does not count its batches, with what stands before and after it: see `kernels.norm`.

    Attributes:
        ceiling: of the activation: infinite for ReLU, 6 for ReLU6, None for no activation.
    """

    ceiling: float | None = None

    def forward(self, input: Tensor, shortcut: Tensor | None = None) -> Tensor:
        if _by_kernel(input):
            return kernels.norm.batch_norm(self, input, ceiling=self.ceiling, shortcut=shortcut)
        statistics, weights = (self.running_mean, self.running_var), (self.weight, self.bias)
        out = F.batch_norm(input, *statistics, *weights, self.training, self.momentum or 0.0, self.eps)
        out = out if shortcut is None else out + shortcut
        return out if self.ceiling is None else F.hardtanh(out, 0.0, self.ceiling)


class FusedBasicBlock(BasicBlock):
    """A residual block whose second batch norm adds the shortcut."""

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.bn2(self.conv2(self.bn1(self.conv1(x))), shortcut)


class LibraryConv2d(nn.Conv2d):
    """A convolution as cuDNN has it.

    Attributes:
        half_weight: its weight in bfloat16, if that is what it multiplies by.
    """

    half_weight: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight if self.half_weight is None else self.half_weight
        return F.conv2d(input, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class NarrowConv2d(nn.Conv2d):
    """A 3x3 convolution of few channels over a small map, as ResNets have them: see `kernels.convolution`.

    The kernel reads all weights again for every 64 pixels, which over 32x32 pixels of 64 channels (VGG's second layer)
    is 450 MB: that is cuDNN's.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not _by_kernel(input) or input[0].numel() > SMALL:
            return super().forward(input)
        return kernels.convolution.convolve(input, self.weight)


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution: see `kernels.depthwise`."""

    def forward(self, input: Tensor) -> Tensor:
        if not _by_kernel(input):
            return super().forward(input)
        return kernels.depthwise.convolve(input, self.weight, self.stride[0])
