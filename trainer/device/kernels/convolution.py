"""3x3 convolutions of few channels in bfloat16, as Triton kernels.

cuDNN's kernels are made for hundreds of channels. With the 16 to 64 of a ResNet for 32x32 images most of their tile is
padding, and weight gradients go by way of fp32: on an H200 the convolutions of ResNet-56 take 3.5 of a step's 5.1 ms.
Here a program multiplies rows of pixels [pixels, C] with the weights of one tap after the other [C, C'], straight from
channels-last maps; products are summed in fp32. Weights and their gradients stay in fp32: none is cast outside.
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

CHANNELS = 16, 32, 64
TAPS = 9
PROGRAMS = 256  # that share the pixels of a weight gradient


def fits(conv: nn.Conv2d) -> bool:
    """Whether this convolution is one of those."""
    shape = conv.kernel_size, conv.stride, conv.padding, conv.dilation
    plain = conv.groups == 1 and conv.bias is None and conv.padding_mode == "zeros"
    few = conv.in_channels in CHANNELS and conv.out_channels in CHANNELS
    return plain and few and shape == ((3, 3), (1, 1), (1, 1), (1, 1))


def convolve(x: Tensor, weight: Tensor) -> Tensor:
    """Map [B, C, H, W] bf16, by weight [C', C, 3, 3] fp32, to [B, C', H, W] bf16, channels-last."""
    return _Convolve.apply(x, weight)


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(x, weight)
        out = x.new_empty(len(x), len(weight), *x.shape[2:]).contiguous(memory_format=torch.channels_last)
        return _run(x, weight, out, (weight.stride(1), weight.stride(0)), flip=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        inner = None
        if ctx.needs_input_grad[0]:
            inner = _run(gradient, weight, torch.empty_like(x), (weight.stride(0), weight.stride(1)), flip=True)
        return inner, _weight_gradient(x, gradient, weight)


def _run(x: Tensor, weight: Tensor, out: Tensor, strides: tuple[int, int], *, flip: bool) -> Tensor:
    """Convolve x into out; `strides` are those of the weight along x's channels and along out's."""
    wide = max(x.shape[1], out.shape[1])
    rows = 128 if wide < 64 else 64
    pixels = x.numel() // x.shape[1]
    _convolve[(triton.cdiv(pixels, rows),)](
        x, weight, out, pixels, weight.stride(3), *strides,
        FLIP=flip, HEIGHT=x.shape[2], WIDTH=x.shape[3], FROM=x.shape[1], TO=out.shape[1], ROWS=rows, num_warps=4,
    )  # fmt: skip
    return out


def _weight_gradient(x: Tensor, gradient: Tensor, weight: Tensor) -> Tensor:
    channels, outputs = x.shape[1], gradient.shape[1]
    taps = {16: 9, 32: 3, 64: 1}[channels]  # of one program: as many as make a tile of 64 to 256 rows
    pixels = x.numel() // channels
    share = max(64, triton.next_power_of_2(triton.cdiv(pixels * (TAPS // taps), PROGRAMS)))
    splits = triton.cdiv(pixels, share)
    parts = torch.empty(splits, TAPS, channels, outputs, device=x.device)
    _weigh[(splits, TAPS // taps)](
        x, gradient, parts, pixels, share,
        HEIGHT=x.shape[2], WIDTH=x.shape[3], FROM=channels, TO=outputs,
        TAPS=taps, SLOTS=triton.next_power_of_2(taps), ROWS=64, num_warps=4,
    )  # fmt: skip
    found = torch.empty_like(weight)
    strides = found.stride(0), found.stride(1), found.stride(3)
    block = max(16, 4096 // triton.next_power_of_2(splits))
    _add_up[(triton.cdiv(weight.numel(), block),)](
        parts, found, splits, *strides, FROM=channels, TO=outputs, PARTS=triton.next_power_of_2(splits), BLOCK=block
    )
    return found


@triton.jit
def _convolve(
    x, weight, out, pixels, tap_stride, from_stride, to_stride,
    FLIP: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, FROM: tl.constexpr, TO: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    line, column = (row // WIDTH) % HEIGHT, row % WIDTH
    channel, output = tl.arange(0, FROM), tl.arange(0, TO)
    total = tl.zeros([ROWS, TO], tl.float32)
    for tap in tl.static_range(9):
        down, right = tap // 3 - 1, tap % 3 - 1
        here = (row < pixels) & (line + down >= 0) & (line + down < HEIGHT)
        here = here & (column + right >= 0) & (column + right < WIDTH)
        at = (row + down * WIDTH + right)[:, None] * FROM + channel[None, :]
        values = tl.load(x + at, mask=here[:, None], other=0.0)
        weights = tl.load(
            weight + (8 - tap if FLIP else tap) * tap_stride
            + channel[:, None] * from_stride + output[None, :] * to_stride
        )  # fmt: skip
        total = tl.dot(values, weights.to(values.dtype), total)
    tl.store(out + row[:, None] * TO + output[None, :], total.to(out.dtype.element_ty), mask=(row < pixels)[:, None])


@triton.jit
def _weigh(
    x, gradient, parts, pixels, share,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, FROM: tl.constexpr, TO: tl.constexpr,
    TAPS: tl.constexpr, SLOTS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """What a share of the pixels adds to the gradients of some taps: of parts [splits, 9, FROM, TO]."""
    slot, channel = tl.arange(0, SLOTS * FROM) // FROM, tl.arange(0, SLOTS * FROM) % FROM
    tap = tl.program_id(1) * TAPS + slot
    down, right = tap // 3 - 1, tap % 3 - 1
    output = tl.arange(0, TO)
    total = tl.zeros([SLOTS * FROM, TO], tl.float32)
    first = tl.program_id(0) * share
    for start in range(first, tl.minimum(first + share, pixels), ROWS):
        row = start + tl.arange(0, ROWS)
        line, column = ((row // WIDTH) % HEIGHT)[:, None] + down[None, :], (row % WIDTH)[:, None] + right[None, :]
        here = (line >= 0) & (line < HEIGHT) & (column >= 0) & (column < WIDTH)
        here = here & (row < pixels)[:, None] & (slot < TAPS)[None, :]
        at = (row[:, None] + (down * WIDTH + right)[None, :]) * FROM + channel[None, :]
        values = tl.load(x + at, mask=here, other=0.0)
        slope = tl.load(gradient + row[:, None] * TO + output[None, :], mask=(row < pixels)[:, None], other=0.0)
        total = tl.dot(tl.trans(values), slope, total)
    at = ((tl.program_id(0) * 9 + tap) * FROM + channel)[:, None] * TO + output[None, :]
    tl.store(parts + at, total, mask=(slot < TAPS)[:, None])


@triton.jit
def _add_up(
    parts, found, splits, to_stride, from_stride, tap_stride,
    FROM: tl.constexpr, TO: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    part = tl.arange(0, PARTS)
    here = (part < splits)[:, None] & (element < 9 * FROM * TO)[None, :]
    total = tl.sum(tl.load(parts + part[:, None] * (9 * FROM * TO) + element[None, :], mask=here, other=0.0), 0)
    output, channel, tap = element % TO, (element // TO) % FROM, element // (FROM * TO)
    at = output * to_stride + channel * from_stride + tap * tap_stride
    tl.store(found + at, total, mask=element < 9 * FROM * TO)
