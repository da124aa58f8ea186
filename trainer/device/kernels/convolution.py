"""3x3 convolutions of few channels, as Triton kernels; and the parts that the kernels of whole blocks share with them.

cuDNN's kernels are made for hundreds of channels. With the 16 to 64 of a ResNet for 32x32 images most of their tile is
padding, and weight gradients go by way of fp32: on an H200 the convolutions of ResNet-56 take 3.5 of a step's 5.1 ms.
Here a program multiplies rows of pixels [pixels, C] with the weights of one tap after the other [C, C'], straight from
channels-last maps; products are summed in fp32. Weights are channels-last too: in memory [C', 9, C].
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

from trainer.device.kernels import sgd
from trainer.device.kernels.norm import activated, affine_of, channels_last, empty_map, slopes_of, statistics

CHANNELS = 16, 32, 64
TAPS = 9
TILE = 4096  # elements that a program of 8 warps multiplies at once
# What a weight gradient takes from memory grows with the programs that share its pixels, each of which leaves a part as
# large as the weight. With 64 to 72 programs for all taps that is 0.6, 0.8 and 1.2 MB, of maps of 4.2, 2.1 and 1.0.
SPLITS = {16: 64, 32: 22, 64: 8}
TOGETHER = {16: 9, 32: 3, 64: 1}  # taps of one program: as many as make a tile of 64 to 256 rows


def fits(conv: nn.Conv2d) -> bool:
    """Whether this convolution is one of those, and its weight channels-last."""
    shape = conv.kernel_size, conv.stride, conv.padding, conv.dilation
    plain = conv.groups == 1 and conv.bias is None and conv.padding_mode == "zeros"
    few = conv.in_channels in CHANNELS and conv.out_channels in CHANNELS
    last = conv.weight.is_contiguous(memory_format=torch.channels_last)
    return plain and few and last and shape == ((3, 3), (1, 1), (1, 1), (1, 1))


def convolve(x: Tensor, weight: Tensor, half: Tensor | None = None) -> Tensor:
    """Convolve a map, with a gradient that the weight's optimizer may take in parts: see `sgd.hand_in`.

    Args:
        x: [B, C, H, W], bf16 or fp32.
        weight: [C', C, 3, 3] fp32, channels-last.
        half: the weight in bf16, which is what a map in bf16 is multiplied by.

    Returns:
        [B, C', H, W] like x, channels-last.

    Raises:
        ValueError: the weight is not channels-last.
    """
    if not weight.is_contiguous(memory_format=torch.channels_last):
        raise ValueError("the weight of this convolution has to be channels-last")
    return _Convolve.apply(x, weight, half)


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, half: Tensor | None) -> Tensor:
        x = channels_last(x)
        ctx.save_for_backward(x, weight, half)
        return _run(x, weight if half is None else half, len(weight), flip=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, half = ctx.saved_tensors
        gradient = channels_last(gradient)
        inner = None
        if ctx.needs_input_grad[0]:
            inner = _run(gradient, weight if half is None else half, x.shape[1], flip=True)
        return inner, sgd.hand_in(weight, weight_gradient(x, gradient)), None


def _run(x: Tensor, weight: Tensor, outputs: int, *, flip: bool) -> Tensor:
    out = empty_map(x, outputs, *x.shape[2:])
    pixels, sizes = x.numel() // x.shape[1], tile(x, outputs)
    _convolve[(triton.cdiv(pixels, sizes["ROWS"]),)](x, weight, out, pixels, FLIP=flip, **sizes)
    return out


def tile(x: Tensor, outputs: int) -> dict[str, int]:
    """What the kernels that call `products` are compiled for, to convolve x.

    One stage, because of more than one Triton keeps all nine taps in shared memory: 377 KB at 64 channels.
    """
    rows = TILE // max(x.shape[1], outputs)
    shape = {"HEIGHT": x.shape[2], "WIDTH": x.shape[3], "FROM": x.shape[1], "TO": outputs}
    return {**shape, "ROWS": rows, "num_warps": 8, "num_stages": 1}


def weight_gradient(x: Tensor, gradient: Tensor, *normed: Tensor) -> Tensor:
    """Return the gradient of the weight that x was multiplied by, in parts [n, C', 9, C] fp32.

    Args:
        x: [B, C, H, W].
        gradient: [B, C', H, W], of the convolution's output, if `normed` is empty.
        normed: else the gradient is that of the batch norm's output. The convolution's output y; where to put its
            gradient; and of the norm `saved`, weight, bias and `affine` (see `norm`).
    """
    channels, outputs = x.shape[1], gradient.shape[1]
    pixels, taps = x.numel() // channels, TOGETHER[channels]
    rows = 128 // x.element_size()  # more of fp32 would not fit into the shared memory of an RTX 40
    share = triton.cdiv(triton.cdiv(pixels, SPLITS[channels]), rows) * rows
    splits = triton.cdiv(pixels, share)
    parts = torch.empty(splits, outputs, TAPS, channels, device=x.device)
    y, inner, saved, weight, bias, affine = normed or (None,) * 6
    _weigh[(splits, TAPS // taps)](
        x, gradient, parts, y, inner, saved, weight, bias, affine, pixels, share,
        HEIGHT=x.shape[2], WIDTH=x.shape[3], FROM=channels, TO=outputs,
        TAPS=taps, SLOTS=triton.next_power_of_2(taps), ROWS=rows, num_warps=8, num_stages=1,
    )  # fmt: skip
    return parts


@triton.jit
def products(
    x, weight, row, pixels, scale, shift, kept,
    FLIP: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, FROM: tl.constexpr, TO: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """What the pixels of these rows come to: [ROWS, TO] fp32.

    Args:
        scale, shift: [FROM] fp32, if x is first to be `x scale + shift` and go through ReLU; else None.
        kept: a map like x to keep those pixels in, or None.
        FLIP: go back from the gradient of the output to that of the input.
    """
    line, column = (row // WIDTH) % HEIGHT, row % WIDTH
    channel, output = tl.arange(0, FROM), tl.arange(0, TO)
    total = tl.zeros([ROWS, TO], tl.float32)
    for tap in tl.static_range(9):
        down, right = tap // 3 - 1, tap % 3 - 1
        here = (row < pixels) & (line + down >= 0) & (line + down < HEIGHT)
        here = here & (column + right >= 0) & (column + right < WIDTH)
        at = (row + down * WIDTH + right)[:, None] * FROM + channel[None, :]
        values = tl.load(x + at, mask=here[:, None], other=0.0)
        if scale is not None:
            normed = activated(values.to(tl.float32) * scale[None, :] + shift[None, :], float("inf"))
            values = tl.where(here[:, None], normed, 0.0).to(values.dtype)
        if tap == 4 and kept is not None:
            tl.store(kept + at, values, mask=here[:, None])
        if FLIP:
            weights = tl.load(weight + (channel[:, None] * 9 + 8 - tap) * TO + output[None, :])
        else:
            weights = tl.load(weight + (output[None, :] * 9 + tap) * FROM + channel[:, None])
        total = tl.dot(values, weights.to(values.dtype), total)
    return total


@triton.jit
def _convolve(
    x, weight, out, pixels, FLIP: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, FROM: tl.constexpr, TO: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row, output = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, TO)
    total = products(x, weight, row, pixels, None, None, None, FLIP, HEIGHT, WIDTH, FROM, TO, ROWS)
    tl.store(out + row[:, None] * TO + output[None, :], total.to(out.dtype.element_ty), mask=(row < pixels)[:, None])


@triton.jit
def _weigh(
    x, gradient, parts, y, inner, saved, weight, bias, affine, pixels, share,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, FROM: tl.constexpr, TO: tl.constexpr,
    TAPS: tl.constexpr, SLOTS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """What a share of the pixels adds to the gradients of some taps."""
    slot = tl.arange(0, SLOTS * FROM) // FROM
    tap, channel, output = tl.program_id(1) * TAPS + slot, tl.arange(0, SLOTS * FROM) % FROM, tl.arange(0, TO)
    down, right, taken = tap // 3 - 1, tap % 3 - 1, slot < TAPS
    offset = (down * WIDTH + right) * FROM + channel
    if y is not None:
        mean, inverse = statistics(saved, output, TO)
        scale, _ = affine_of(weight, bias, inverse, output, TO)
        level, slope = slopes_of(affine, inverse, pixels, output, TO)
    total = tl.zeros([SLOTS * FROM, TO], tl.float32)
    first = tl.program_id(0) * share
    last = tl.minimum(first + share, pixels)
    values, given, raw = _read(
        x, gradient, y, first, last, taken, down, right, offset, output, HEIGHT, WIDTH, FROM, TO, ROWS
    )  # fmt: skip
    for start in range(first, last, ROWS):
        held, received, normed = values, given, raw
        values, given, raw = _read(
            x, gradient, y, start + ROWS, last, taken, down, right, offset, output, HEIGHT, WIDTH, FROM, TO, ROWS
        )  # fmt: skip
        if y is not None:
            row = start + tl.arange(0, ROWS)
            at, inside = row[:, None] * TO + output[None, :], (row < last)[:, None]
            centred = normed.to(tl.float32) - mean[None, :]
            inward = (received.to(tl.float32) - level[None, :] - centred * slope[None, :]) * scale[None, :]
            received = tl.where(inside, inward, 0.0).to(received.dtype)
            tl.store(inner + at, received, mask=inside & (tl.program_id(1) == 0))
        total = tl.dot(tl.trans(held), received, total)
    at = ((tl.program_id(0) * TO + output[None, :]) * 9 + tap[:, None]) * FROM + channel[:, None]
    tl.store(parts + at, total, mask=(slot < TAPS)[:, None])


@triton.jit
def _read(
    x, gradient, y, start, last, taken, down, right, offset, output,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, FROM: tl.constexpr, TO: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The neighbourhoods of pixels up to the last, [ROWS, taps x FROM], the gradient there and y, [ROWS, TO]."""
    row = start + tl.arange(0, ROWS)
    line, column = ((row // WIDTH) % HEIGHT)[:, None] + down[None, :], (row % WIDTH)[:, None] + right[None, :]
    inside = (row < last)[:, None]
    here = (line >= 0) & (line < HEIGHT) & (column >= 0) & (column < WIDTH) & inside & taken[None, :]
    values = tl.load(x + row[:, None] * FROM + offset[None, :], mask=here, other=0.0)
    at = row[:, None] * TO + output[None, :]
    given = tl.load(gradient + at, mask=inside, other=0.0)
    raw = given
    if y is not None:
        raw = tl.load(y + at, mask=inside, other=0.0)
    return values, given, raw
