"""The first layer of a network as one autograd function: the 3x3 convolution of an image, batch norm, an activation.

The images have three channels, and its map is the largest or nearly so. cuDNN wants eight channels, and there is no
gradient to go back to the images: so backward the norm's gradient, of which nothing but the weight's is made, is worked
out where that is added up, and never stored. Forward the convolution takes the norm's sums. Of a map of VGG-16, 16.8 MB
at a batch of 128, that is three passes less of twelve.

    forward   y = conv(images), its statistics; out = activation(norm(y))
    backward  the norm's sums, from (gradient, y); the weight's gradient, from (gradient, y, images)
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

from trainer.device.kernels import norm as norms
from trainer.device.kernels import sgd
from trainer.device.kernels.norm import (
    affine_of,
    channels_last,
    empty_map,
    passes,
    share_moments,
    slopes_of,
    statistics,
)

COLOURS = 3
TAPS = 27  # of a weight: 3x3 of 3 channels, in this order in memory
TILE = 4096  # elements of the map that a program of 8 warps makes at once, with two sums for each
PROGRAMS = 264  # that share a sum: two for each of an H100's 132 multiprocessors
SPLITS = 128  # programs that share the weight's gradient


def fits(conv: nn.Conv2d) -> bool:
    """Whether this convolution is one of those: 3x3 of three channels, to 16, 32 or 64."""
    plain = conv.groups == 1 and conv.bias is None and conv.padding_mode == "zeros" and conv.dilation == (1, 1)
    shape = conv.kernel_size == (3, 3) and conv.padding == (1, 1) and conv.stride in ((1, 1), (2, 2))
    dense = conv.weight.is_contiguous(memory_format=torch.channels_last)
    return plain and shape and dense and conv.in_channels == COLOURS and conv.out_channels in (16, 32, 64)


def run(conv: nn.Conv2d, norm: nn.BatchNorm2d, images: Tensor, tickets: Tensor, *, ceiling: float | None) -> Tensor:
    """Return what the activation makes of `norm(conv(images))`; running statistics move as torch's do.

    Args:
        conv: which `fits`. If it has a `half_weight`, the images are multiplied by that.
        images: [B, 3, H, W] in the type of what they are multiplied by; there is no gradient for them.
        tickets: see `norm.tickets`.
        ceiling: of the activation, as in `norm.batch_norm`.
    """
    half = getattr(conv, "half_weight", None)
    multiplied = conv.weight.detach() if half is None else half
    images = channels_last(images)
    running = norm.running_mean, norm.running_var, norm.momentum, norm.eps
    if norm.training:
        settings = multiplied, conv.stride[0], running, tickets, ceiling
        return _Stem.apply(images, conv.weight, norm.weight, norm.bias, *settings)
    y = _convolve_images(images, multiplied, conv.stride[0], None, None, None)
    return norms.batch_norm(norm, y, tickets, ceiling=ceiling, shortcut=None, pooled=False)


class _Stem(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, multiplied: Tensor, stride: int,
        running: tuple[Any, ...], tickets: Tensor, ceiling: float | None,
    ) -> Tensor:  # fmt: skip
        saved = torch.empty(2, len(weight), device=images.device)
        y = _convolve_images(images, multiplied, stride, saved, running, tickets)
        ctx.save_for_backward(images, weight, scale, shift, y, saved)
        ctx.stride, ctx.tickets, ctx.ceiling = stride, tickets, ceiling
        return norms.normalise(y, saved, scale, shift, ceiling=ceiling)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        images, weight, scale, shift, y, saved = ctx.saved_tensors
        gradient = channels_last(gradient)
        affine = norms.slopes(y, gradient, saved, scale, shift, ctx.tickets, ceiling=ctx.ceiling)
        pixels = y.numel() // len(weight)
        sizes = _sizes(images, y, ctx.stride)
        splits = min(SPLITS, triton.cdiv(pixels, sizes["ROWS"]))
        parts = torch.empty(splits, len(weight), TAPS, device=y.device)
        _weigh[(splits,)](
            images, gradient, y, saved, scale, shift, affine, parts, pixels,
            CEILING=ctx.ceiling, **sizes, num_stages=2,
        )  # fmt: skip
        return None, sgd.hand_in(weight, parts), affine[0], affine[1], *(None,) * 5


def _convolve_images(
    images: Tensor, weight: Tensor, stride: int, saved: Tensor | None, running: tuple[Any, ...] | None,
    tickets: Tensor | None,
) -> Tensor:  # fmt: skip
    """Return [B, C', H', W'], in the type of the images; its statistics are saved [2, C'] if there is a place."""
    out = empty_map(images, len(weight), *(triton.cdiv(side, stride) for side in images.shape[2:]))
    pixels = out.numel() // len(weight)
    sizes = _sizes(images, out, stride)
    programs = triton.cdiv(pixels, sizes["ROWS"])
    programs = programs if saved is None else min(PROGRAMS, programs)
    parts = None if saved is None else torch.empty(programs, 2, len(weight), device=images.device)
    _convolve[(programs,)](
        images, weight, out, saved, *(running or (None, None, 0.0, 0.0)), parts, tickets, pixels, **sizes
    )  # fmt: skip
    return out


def _sizes(images: Tensor, out: Tensor, stride: int) -> dict[str, int]:
    shape = {"HEIGHT": images.shape[2], "WIDTH": images.shape[3], "OUT_HEIGHT": out.shape[2], "OUT_WIDTH": out.shape[3]}
    return {**shape, "STRIDE": stride, "TO": out.shape[1], "ROWS": TILE // out.shape[1], "num_warps": 8}


@triton.jit
def _windows(
    images, row, pixels, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, OUT_HEIGHT: tl.constexpr, OUT_WIDTH: tl.constexpr,
    STRIDE: tl.constexpr,
):  # fmt: skip
    """What each of these pixels is made of: [ROWS, 32], of which the last five are 0."""
    place = tl.arange(0, 32)
    tap, colour = place // 3, place % 3
    image, line, column = row // (OUT_HEIGHT * OUT_WIDTH), (row // OUT_WIDTH) % OUT_HEIGHT, row % OUT_WIDTH
    line = (line * STRIDE)[:, None] + (tap // 3 - 1)[None, :]
    column = (column * STRIDE)[:, None] + (tap % 3 - 1)[None, :]
    here = (line >= 0) & (line < HEIGHT) & (column >= 0) & (column < WIDTH)
    here = here & (row < pixels)[:, None] & (tap < 9)[None, :]
    at = ((image * HEIGHT)[:, None] + line) * WIDTH + column
    return tl.load(images + at * 3 + colour[None, :], mask=here, other=0.0)


@triton.jit
def _convolve(
    images, weight, out, saved, running_mean, running_var, momentum, eps, parts, tickets, pixels,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, OUT_HEIGHT: tl.constexpr, OUT_WIDTH: tl.constexpr,
    STRIDE: tl.constexpr, TO: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    place, output = tl.arange(0, 32), tl.arange(0, TO)
    weights = tl.load(weight + output[None, :] * 27 + place[:, None], mask=(place < 27)[:, None], other=0.0)
    first = tl.zeros([ROWS, TO], tl.float32)
    second = tl.zeros([ROWS, TO], tl.float32)
    if saved is not None:
        pivot = tl.load(running_mean + output)  # near the mean, and read without the map
    for start in range(tl.program_id(0) * ROWS, pixels, tl.num_programs(0) * ROWS):
        row = start + tl.arange(0, ROWS)
        windows = _windows(images, row, pixels, HEIGHT, WIDTH, OUT_HEIGHT, OUT_WIDTH, STRIDE)
        stored = tl.dot(windows, weights).to(out.dtype.element_ty)
        inside = (row < pixels)[:, None]
        tl.store(out + row[:, None] * TO + output[None, :], stored, mask=inside)
        if saved is not None:
            moved = tl.where(inside, stored.to(tl.float32) - pivot[None, :], 0.0)
            first += moved
            second += moved * moved
    if saved is not None:
        share_moments(
            parts, tickets, tl.sum(first, 0), tl.sum(second, 0), pivot, saved, running_mean, running_var, momentum, eps,
            pixels, output, TO,
        )  # fmt: skip


@triton.jit
def _weigh(
    images, gradient, y, saved, scale, shift, affine, parts, pixels, CEILING: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, OUT_HEIGHT: tl.constexpr, OUT_WIDTH: tl.constexpr,
    STRIDE: tl.constexpr, TO: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """What every n-th tile of pixels adds to the gradient of the weight."""
    place, output = tl.arange(0, 32), tl.arange(0, TO)
    mean, inverse = statistics(saved, output, TO)
    factor, offset = affine_of(scale, shift, inverse, output, TO)
    level, slope = slopes_of(affine, inverse, pixels, output, TO)
    total = tl.zeros([TO, 32], tl.float32)
    for start in range(tl.program_id(0) * ROWS, pixels, tl.num_programs(0) * ROWS):
        row = start + tl.arange(0, ROWS)
        at, inside = row[:, None] * TO + output[None, :], (row < pixels)[:, None]
        given = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
        centred = tl.load(y + at, mask=inside, other=0.0).to(tl.float32) - mean[None, :]
        if CEILING is not None:
            given = tl.where(passes(centred * factor[None, :] + offset[None, :], CEILING), given, 0.0)
        raw = (given - level[None, :] - centred * slope[None, :]) * factor[None, :]
        raw = tl.where(inside, raw, 0.0).to(gradient.dtype.element_ty)
        windows = _windows(images, row, pixels, HEIGHT, WIDTH, OUT_HEIGHT, OUT_WIDTH, STRIDE)
        total = tl.dot(tl.trans(raw), windows, total)
    at = (tl.program_id(0) * TO + output)[:, None] * 27 + place[None, :]
    tl.store(parts + at, total, mask=(place < 27)[None, :])
