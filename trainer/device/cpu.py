"""The same network, faster on a CPU.

oneDNN's convolutions are made for large maps. At ImageNet's strides half of MobileNetV2's layers see 2x2 and 1x1 maps
of a 32x32 image, where a 1x1 convolution spends its time on laying out weights, and the weight gradient of a depthwise
one on a call for every image; the last of VGG's see 2x2. A few layers change how they compute, not what: outputs and
gradients agree with torch's to float tolerance, and parameters are the same tensors under the same names. Measured on 2
cores (Zen 5), batch 128: a training step of `mobilenetv2_s32` takes 55 ms where it took 84, one of VGG-16 in bfloat16
365 where it took 459.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from trainer import compat
from trainer.compat import product

SMALL_MAP = 4  # positions: 2x2


def speed_up(network: nn.Module) -> None:
    """Swap the layers of a network that is to train on the CPU, in place."""
    norms: list[BatchNormReLU6] = []
    for module in list(network.modules()):
        if isinstance(module, nn.Conv2d):
            _speed_up_convolution(module)
        elif isinstance(module, nn.Sequential):
            for index, (first, second) in enumerate(itertools.pairwise(module)):
                if isinstance(first, nn.BatchNorm2d) and isinstance(second, nn.ReLU6):
                    first.__class__ = BatchNormReLU6
                    module[index + 1] = nn.Identity()
                    norms.append(cast(BatchNormReLU6, first))
    for norm in norms[:-1]:  # MobileNetV2 is the one network with such layers; the last one's reader is the pool
        norm.before_convolution = True


def _speed_up_convolution(conv: nn.Conv2d) -> None:
    if conv.dilation != (1, 1) or isinstance(conv.padding, str) or conv.padding_mode != "zeros":
        return
    if conv.kernel_size == (3, 3) and conv.stride == conv.padding == (1, 1) and conv.groups == 1:
        conv.__class__ = SmallMapConv2d
    elif conv.bias is not None:
        return
    elif conv.kernel_size == conv.stride == (1, 1) and conv.padding == (0, 0) and conv.groups == 1:
        conv.__class__ = PointwiseConv2d
    elif conv.groups == conv.in_channels == conv.out_channels > 1:
        conv.__class__ = DepthwiseConv2d


def keep_memory() -> None:
    """Let glibc keep what is freed instead of giving it back to the system.

    Every step frees and takes the same activations; by default large ones are unmapped and faulted in again page by
    page, 5 to 20 % of a step of `mobilenetv2_s32`. Does nothing where the C library is another.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        trim_threshold, mmap_threshold = -1, -3  # malloc.h
        libc.mallopt(mmap_threshold, 2**30)
        libc.mallopt(trim_threshold, 2**31 - 1)


class BatchNormReLU6(nn.BatchNorm2d):
    """Batch norm and the ReLU6 after it, which clamps in place what nobody else needs: one pass over memory less.

    torch's own in-place ReLU6 clamps into a new tensor and copies it back: 10 % of a step of `mobilenetv2_s32`.

    Attributes:
        before_convolution: whether a convolution, and nothing else, reads what this gives. The gradient that comes back
            is then a tensor that nobody else has, and is clamped in place too: 4 % of the same step.
    """

    before_convolution = False

    def forward(self, input: Tensor) -> Tensor:
        out = super().forward(input)
        if not torch.is_grad_enabled():
            return out.clamp_(0, 6)
        if not self.training or torch.is_autocast_enabled(input.device.type):
            return F.relu6(out)
        return _ReLU6.apply(out, self.before_convolution)


class _ReLU6(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gradient_in_place: bool) -> Tensor:
        ctx.mark_dirty(x.clamp_(0, 6))
        ctx.save_for_backward(x)
        ctx.gradient_in_place = gradient_in_place
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (out,) = ctx.saved_tensors
        # Channels last, as x is: a pool's gradient over 1x1 is not, and batch norm then takes 0.33 ms and not 0.06.
        into = gradient if ctx.gradient_in_place else torch.empty_like(gradient, memory_format=torch.channels_last)
        return compat.clamp_gradient(gradient, out, 0.0, 6.0, into), None


def _rows(maps: Tensor) -> Tensor:
    """[B, C, H, W] -> [B H W, C]; no copy if its memory is channels-last."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2)


class PointwiseConv2d(nn.Conv2d):
    """A 1x1 convolution; over a small map it is better taken as a matrix product, [B H W, C] x [C, C'].

    Forward and backward at 320 to 1280 channels and 1x1 take 1.1 ms where oneDNN's convolution takes 4.2; at 96 to 576
    and 2x2 0.6 where it takes 0.9; from 4x4 on there is little in it.
    """

    def forward(self, input: Tensor) -> Tensor:
        half = torch.is_autocast_enabled(input.device.type)
        if input.shape[2] * input.shape[3] > (1 if half else SMALL_MAP):
            return super().forward(input)
        if half:
            return F.linear(input.flatten(1), self.weight.flatten(1))[:, :, None, None]
        return _Pointwise.apply(input, self.weight)


class _Pointwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _maps(product(_rows(x), weight.flatten(1)), x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        inner, rows = _rows(gradient), _rows(x)
        dx = _maps(product(inner, weight.flatten(1).t()), x.shape)
        # `product` copies its first matrix if it is a transposed one: the narrow of the two, 96 columns and not 576.
        dweight = product(rows.t(), inner.t()).t() if rows.shape[1] < inner.shape[1] else product(inner.t(), rows.t())
        return dx, dweight[:, :, None, None]


def _maps(rows: Tensor, shape: torch.Size) -> Tensor:
    """[B H W, C'] -> [B, C', H, W], with B, H and W from `shape`."""
    return rows.view(shape[0], shape[2], shape[3], -1).permute(0, 3, 1, 2)


class SmallMapConv2d(nn.Conv2d):
    """A 3x3 convolution; over a 2x2 map every output sees every input, so it is a matrix product, [B, 4C] x [4C, 4C'].

    At 512 channels forward and backward take 21 ms where the convolution takes 29, and in bfloat16 7 where it takes 22:
    VGG-16 has three of them.
    """

    def forward(self, input: Tensor) -> Tensor:
        if input.shape[2:] != (2, 2):
            return super().forward(input)
        tensors = (input, self.weight, self.weight.new_zeros(self.out_channels) if self.bias is None else self.bias)
        if torch.is_autocast_enabled(input.device.type):
            tensors = tuple(tensor.to(torch.get_autocast_dtype(input.device.type)) for tensor in tensors)
        return _SmallMap.apply(*tensors)


class _SmallMap(torch.autograd.Function):
    POSITIONS = ((0, 0), (0, 1), (1, 0), (1, 1))

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        taps = weight.permute(0, 2, 3, 1)  # [C', 3, 3, C]
        windows = [taps[:, 1 - i : 3 - i, 1 - j : 3 - j].flatten(1) for i, j in _SmallMap.POSITIONS]
        matrix = torch.cat(windows)  # [4 C', 4 C]: from input positions and channels to output positions and channels
        flat = x.permute(0, 2, 3, 1).flatten(1)
        ctx.save_for_backward(flat, matrix)
        return product(flat, matrix, bias.repeat(4)).view(len(x), 2, 2, -1).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        flat, matrix = ctx.saved_tensors
        batch, channels = len(flat), flat.shape[1] // 4
        inner = gradient.permute(0, 2, 3, 1).flatten(1)
        dx = product(inner, matrix.t()).view(batch, 2, 2, channels).permute(0, 3, 1, 2)
        parts = product(inner.t(), flat.t()).view(4, -1, 2, 2, channels)
        taps = torch.zeros(parts.shape[1], 3, 3, channels, dtype=parts.dtype)
        for part, (i, j) in zip(parts, _SmallMap.POSITIONS, strict=True):
            taps[:, 1 - i : 3 - i, 1 - j : 3 - j] += part
        return dx, taps.permute(0, 3, 1, 2), inner.view(batch * 4, -1).sum(0)


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution whose weight gradient, over a small map, is summed over the products of all positions.

    At 960 channels and 1x1 that takes 0.02 ms where oneDNN takes 0.97; from 4x4 on oneDNN is the faster one.
    """

    def forward(self, input: Tensor) -> Tensor:
        if input.shape[2] * input.shape[3] > SMALL_MAP or torch.is_autocast_enabled(input.device.type):
            return super().forward(input)
        out = F.conv2d(input, self.weight.detach(), None, self.stride, self.padding, groups=len(self.weight))
        return _DepthwiseWeight.apply(out, input, self.weight, self.stride, self.padding)


class _DepthwiseWeight(torch.autograd.Function):
    """The identity of a depthwise convolution's output; its weight's gradient. The input's is left to torch."""

    @staticmethod
    def forward(
        ctx: Any, out: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        return gradient, None, _weight_gradient(x, gradient, weight, ctx.stride, ctx.padding), None, None


def _weight_gradient(x: Tensor, gradient: Tensor, weight: Tensor, stride: Any, padding: Any) -> Tensor:
    """[C, 1, k, k]: for each tap the sum over the batch of input x output gradient at the positions that it joins."""
    inputs, outputs = (maps.permute(0, 2, 3, 1).flatten(1, 2) for maps in (x, gradient))
    pairs = (inputs[:, :, None] * outputs[:, None]).sum(0).flatten(0, 1)  # [positions in x positions out, C]
    joined = _joined(x.shape[2:], gradient.shape[2:], weight.shape[2:], stride, padding)
    return (joined.to(pairs.dtype) @ pairs).t().reshape(weight.shape)


@functools.cache
def _joined(inputs: torch.Size, outputs: torch.Size, taps: torch.Size, stride: Any, padding: Any) -> Tensor:
    """[taps, positions in x positions out]: 1 where the tap joins the two, 0 elsewhere."""
    rows, columns = (
        torch.arange(inputs[axis])[None, :, None] + padding[axis]
        == torch.arange(outputs[axis])[None, None, :] * stride[axis] + torch.arange(taps[axis])[:, None, None]
        for axis in (0, 1)
    )  # [taps, inputs, outputs] of an axis
    return (rows[:, None, :, None, :, None] & columns[None, :, None, :, None, :]).float().reshape(math.prod(taps), -1)
