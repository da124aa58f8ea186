"""Depthwise 3x3 convolutions as Triton kernels.

cuDNN has no one kernel for the maps of `mobilenetv2_s32`, 16x16 down to 1x1: in bfloat16 it takes one of them, 576
channels of 2x2, with a launch for every channel, and most weight gradients in two kernels. Here each is a pass over
channels-last maps, summed in fp32: 9 products an output are no work for a GPU, reading the maps is.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportIndexIssue=false, reportReturnType=false
# Triton reads these functions, Python does not run them: their types are not Python's.

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

TAPS = 9
TILE = 2048  # elements that a program holds at once
PROGRAMS = 512


def fits(conv: nn.Conv2d) -> bool:
    """Whether this convolution is one of those, with a stride of 1 or 2."""
    depthwise = conv.groups == conv.in_channels == conv.out_channels > 1
    plain = conv.bias is None and conv.padding_mode == "zeros" and conv.stride in ((1, 1), (2, 2))
    return depthwise and plain and (conv.kernel_size, conv.padding, conv.dilation) == ((3, 3), (1, 1), (1, 1))


def convolve(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Map [B, C, H, W], by weight [C, 1, 3, 3] fp32, to [B, C, ceil(H / stride), ceil(W / stride)], channels-last."""
    return _Depthwise.apply(x, weight, stride)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        batch, channels, height, width = x.shape
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        shape = batch, channels, triton.cdiv(height, stride), triton.cdiv(width, stride)
        out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        return _run(_convolve, x, out, weight, _sizes(x, out, stride))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        sizes = _sizes(x, gradient, ctx.stride)
        inner = _run(_differentiate, gradient, torch.empty_like(x), weight, sizes)
        return inner, _weight_gradient(x, gradient, weight, sizes), None


def _sizes(x: Tensor, out: Tensor, stride: int) -> dict[str, int]:
    """Return what the kernels are compiled for: those of the input and of the output, forward and backward."""
    names = ("HEIGHT", "WIDTH", "OUT_HEIGHT", "OUT_WIDTH")
    return {**dict(zip(names, (*x.shape[2:], *out.shape[2:]), strict=True)), "STRIDE": stride}


def _run(kernel: Any, source: Tensor, target: Tensor, weight: Tensor, sizes: dict[str, int]) -> Tensor:
    channels = target.shape[1]
    pixels = target.numel() // channels
    columns, rows = _tile(channels, pixels)
    kernel[(triton.cdiv(pixels, rows), triton.cdiv(channels, columns))](
        source, weight, target, pixels, channels, weight.stride(0), weight.stride(3),
        **sizes, ROWS=rows, COLUMNS=columns, num_warps=4,
    )  # fmt: skip
    return target


def _weight_gradient(x: Tensor, gradient: Tensor, weight: Tensor, sizes: dict[str, int]) -> Tensor:
    channels = x.shape[1]
    pixels = gradient.numel() // channels
    columns, rows = _tile(channels, pixels)
    across = triton.cdiv(channels, columns)
    splits = min(triton.cdiv(pixels, rows), max(1, PROGRAMS // across))
    parts = torch.empty(splits, TAPS, channels, device=x.device)
    _weigh[(splits, across)](
        x, gradient, parts, pixels, channels,
        **sizes, ROWS=rows, COLUMNS=columns, num_warps=4,
    )  # fmt: skip
    found = parts[0] if splits == 1 else parts.sum(0)
    return found.t().reshape(weight.shape)


def _tile(channels: int, pixels: int) -> tuple[int, int]:
    """Channels and pixels of a program's tile."""
    columns = min(32, triton.next_power_of_2(channels))
    return columns, min(TILE // columns, triton.next_power_of_2(pixels))


@triton.jit
def _convolve(
    x, weight, out, pixels, channels, channel_stride, tap_stride,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, OUT_HEIGHT: tl.constexpr, OUT_WIDTH: tl.constexpr,
    STRIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    image, line, column = row // (OUT_HEIGHT * OUT_WIDTH), (row // OUT_WIDTH) % OUT_HEIGHT, row % OUT_WIDTH
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for tap in tl.static_range(9):
        down, right = line * STRIDE + tap // 3 - 1, column * STRIDE + tap % 3 - 1
        here = (row < pixels) & (down >= 0) & (down < HEIGHT) & (right >= 0) & (right < WIDTH)
        at = ((image * HEIGHT + down) * WIDTH + right)[:, None] * channels + channel[None, :]
        values = tl.load(x + at, mask=here[:, None] & (channel < channels)[None, :], other=0.0).to(tl.float32)
        factor = tl.load(weight + channel * channel_stride + tap * tap_stride, mask=channel < channels, other=0.0)
        total += values * factor[None, :]
    at = row[:, None] * channels + channel[None, :]
    tl.store(out + at, total.to(out.dtype.element_ty), mask=(row < pixels)[:, None] & (channel < channels)[None, :])


@triton.jit
def _differentiate(
    gradient, weight, inner, pixels, channels, channel_stride, tap_stride,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, OUT_HEIGHT: tl.constexpr, OUT_WIDTH: tl.constexpr,
    STRIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    image, line, column = row // (HEIGHT * WIDTH), (row // WIDTH) % HEIGHT, row % WIDTH
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for tap in tl.static_range(9):
        up, left = line + 1 - tap // 3, column + 1 - tap % 3
        here = (row < pixels) & (up >= 0) & (left >= 0) & (up % STRIDE == 0) & (left % STRIDE == 0)
        here = here & (up // STRIDE < OUT_HEIGHT) & (left // STRIDE < OUT_WIDTH)
        at = ((image * OUT_HEIGHT + up // STRIDE) * OUT_WIDTH + left // STRIDE)[:, None] * channels + channel[None, :]
        values = tl.load(gradient + at, mask=here[:, None] & (channel < channels)[None, :], other=0.0).to(tl.float32)
        factor = tl.load(weight + channel * channel_stride + tap * tap_stride, mask=channel < channels, other=0.0)
        total += values * factor[None, :]
    at = row[:, None] * channels + channel[None, :]
    tl.store(inner + at, total.to(inner.dtype.element_ty), mask=(row < pixels)[:, None] & (channel < channels)[None, :])


@triton.jit
def _weigh(
    x, gradient, parts, pixels, channels,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, OUT_HEIGHT: tl.constexpr, OUT_WIDTH: tl.constexpr,
    STRIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """What every n-th tile of output pixels adds to the gradients of the taps: parts [n, 9, channels]."""
    channel = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    for tap in tl.static_range(9):
        total = tl.zeros([ROWS, COLUMNS], tl.float32)
        for start in range(tl.program_id(0) * ROWS, pixels, tl.num_programs(0) * ROWS):
            row = start + tl.arange(0, ROWS)
            image, line, column = row // (OUT_HEIGHT * OUT_WIDTH), (row // OUT_WIDTH) % OUT_HEIGHT, row % OUT_WIDTH
            down, right = line * STRIDE + tap // 3 - 1, column * STRIDE + tap % 3 - 1
            here = (row < pixels) & (down >= 0) & (down < HEIGHT) & (right >= 0) & (right < WIDTH)
            mask = here[:, None] & (channel < channels)[None, :]
            at = ((image * HEIGHT + down) * WIDTH + right)[:, None] * channels + channel[None, :]
            values = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
            slope = tl.load(gradient + row[:, None] * channels + channel[None, :], mask=mask, other=0.0).to(tl.float32)
            total += values * slope
        to = (tl.program_id(0) * 9 + tap) * channels + channel
        tl.store(parts + to, tl.sum(total, 0), mask=channel < channels)
