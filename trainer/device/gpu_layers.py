"""Layers that take the place of torch's on a GPU: the same parameters, buffers and names, by other kernels.

On a CPU, and in tests, they compute the same by torch's functions.
"""

from __future__ import annotations

import itertools
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.resnet import BasicBlock

from trainer.device import kernels

SMALL = 2**14  # elements of an image's map: 16 x 32 x 32


def _by_kernel(input: Tensor) -> bool:
    """Whether Triton's kernels run where it is."""
    return input.is_cuda


def _fused(module: nn.Module, input: Tensor) -> bool:
    """Whether a batch norm is one kernel with what is around it; in evaluation such a kernel leaves no gradient."""
    return _by_kernel(input) and (module.training or not torch.is_grad_enabled())


class FusedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that does not count its batches, with what stands before and after it: see `kernels.norm`.

    Attributes:
        ceiling: of the activation: infinite for ReLU, 6 for ReLU6, None for no activation.
        pooled: whether the largest of each 2x2 comes out.
        tickets: see `kernels.norm.tickets`.
    """

    ceiling: float | None = None
    pooled = False
    tickets: Tensor | None = None

    def forward(self, input: Tensor, shortcut: Tensor | None = None) -> Tensor:
        even = input.shape[2] % 2 == input.shape[3] % 2 == 0
        if _fused(self, input) and (even or not self.pooled):
            tickets = cast(Tensor, self.tickets)
            after = {"ceiling": self.ceiling, "shortcut": shortcut, "pooled": self.pooled}
            return kernels.norm.batch_norm(self, input, tickets, **after)
        statistics, weights = (self.running_mean, self.running_var), (self.weight, self.bias)
        out = F.batch_norm(input, *statistics, *weights, self.training, self.momentum or 0.0, self.eps)
        out = out if shortcut is None else out + shortcut
        out = out if self.ceiling is None else F.hardtanh(out, 0.0, self.ceiling)
        return F.max_pool2d(out, 2) if self.pooled else out


class LibraryConv2d(nn.Conv2d):
    """A convolution as cuDNN has it.

    Attributes:
        half_weight: its weight in bfloat16, if that is what it multiplies by.
    """

    half_weight: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight if self.half_weight is None else self.half_weight
        return F.conv2d(input, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class HalfLinear(nn.Linear):
    """A linear layer as cuBLAS has it, in bfloat16.

    Attributes:
        half_weight, half_bias: what it computes with.
    """

    half_weight: Tensor
    half_bias: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.half_weight, self.half_bias)


class NarrowConv2d(LibraryConv2d):
    """A 3x3 convolution of few channels over a small map, as ResNets have them: see `kernels.convolution`.

    The kernel reads all weights again for every 64 pixels, which over 32x32 pixels of 64 channels (VGG's second layer)
    is 450 MB: that is cuDNN's.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not _by_kernel(input) or input[0].numel() > SMALL:
            return super().forward(input)
        return kernels.convolution.convolve(input, self.weight, self.half_weight)


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution: see `kernels.depthwise`."""

    def forward(self, input: Tensor) -> Tensor:
        if not _by_kernel(input):
            return super().forward(input)
        return kernels.depthwise.convolve(input, self.weight, self.stride[0])


class ConvolutionOfStem(LibraryConv2d):
    """The first convolution, which leaves its work to the batch norm after it."""

    def forward(self, input: Tensor) -> Tensor:
        return input


class StemNorm2d(FusedBatchNorm2d):
    """A batch norm that does the convolution before it as well: see `kernels.stem`.

    Attributes:
        convolution: that one alone; in a tuple, or it would be this layer's own, under a second name.
    """

    convolution: tuple[ConvolutionOfStem]

    def forward(self, input: Tensor, shortcut: Tensor | None = None) -> Tensor:
        (conv,) = self.convolution
        if not _fused(self, input) or shortcut is not None:
            return super().forward(LibraryConv2d.forward(conv, input), shortcut)
        input = input if conv.half_weight is None else input.to(conv.half_weight.dtype)
        return kernels.stem.run(conv, self, input, cast(Tensor, self.tickets), ceiling=self.ceiling)


class FusedBasicBlock(BasicBlock):
    """A residual block whose second batch norm adds the shortcut."""

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.bn2(self.conv2(self.bn1(self.conv1(x))), shortcut)


class Stage(nn.Sequential):
    """A stage of a ResNet, which computes the blocks that keep a map's shape together: see `kernels.basic_block`."""

    def forward(self, input: Tensor) -> Tensor:
        for chained, group in itertools.groupby(self, kernels.basic_block.fits):
            blocks = cast(list[FusedBasicBlock], list(group))
            if chained and _fused(self, input) and input[0].numel() <= SMALL:
                input = kernels.basic_block.chain(blocks, input, cast(Tensor, blocks[0].bn1.tickets))
            else:
                for block in blocks:
                    input = block(input)
        return input


class FusedInvertedResidual(InvertedResidual):
    """A block of MobileNetV2 whose last batch norm adds the shortcut.

    Attributes:
        whole: whether it is one function: see `kernels.inverted_residual`.
    """

    whole = False

    def forward(self, x: Tensor) -> Tensor:
        *layers, last = self.conv
        if self.whole and _fused(self, x):
            return kernels.inverted_residual.run(
                self.conv, x, cast(Tensor, last.tickets), shortcut=self.use_res_connect
            )
        out = x
        for layer in layers:
            out = layer(out)
        return last(out, x if self.use_res_connect else None)
