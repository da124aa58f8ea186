"""Batch norm with what follows it, an activation and a residual, in two Triton kernels each way, or in one.

A training step of these networks is bound by memory traffic and by the number of its kernels, and of both most are
not convolutions: batch norm, ReLU and the addition of a shortcut read and write the same maps again and again. Fused,
forward reads them twice and writes them once, backward reads twice and writes once; what ReLU let through is worked out
again and not stored. Sums are taken in fp32 in an order that depends on the shape alone, so the same numbers come out
every time. Maps are channels-last: a matrix [B H W, C].
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

TILE = 4096  # elements that a program holds at once
WHOLE = 512  # rows up to which a program sees all of its channels' rows, and no second kernel is needed
PROGRAMS = 512


def batch_norm(norm: nn.BatchNorm2d, x: Tensor, *, ceiling: float | None, shortcut: Tensor | None) -> Tensor:
    """Return `min(max(norm(x) + shortcut, 0), ceiling)` on a GPU.

    Args:
        x: [B, C, H, W], fp32 or bf16, which is what comes out too.
        ceiling: of the activation: infinite for ReLU, 6 for ReLU6, None for no activation.
        shortcut: like x.
    """
    statistics = norm.running_mean, norm.running_var
    if norm.training:
        return _BatchNorm.apply(x, norm.weight, norm.bias, shortcut, *statistics, norm.momentum, norm.eps, ceiling)
    x, shortcut = _channels_last(x), None if shortcut is None else _channels_last(shortcut)
    out = torch.empty_like(x)
    _write(Geometry(x), x, shortcut, out, None, None, norm.weight, norm.bias, *statistics, 0.0, norm.eps, ceiling)
    return out


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor | None, *settings: Any) -> Tensor:
        ceiling = settings[-1]
        x = _channels_last(x)
        shortcut = None if shortcut is None else _channels_last(shortcut)
        out = torch.empty_like(x)
        saved = torch.empty(2, x.shape[1], device=x.device)  # mean and 1/deviation
        geometry = Geometry(x)
        parts = geometry.parts(x)
        if parts is not None:
            _sum[geometry.summing](x, parts, *geometry.sizes, **geometry.blocks)
        _write(geometry, x, shortcut, out, parts, saved, weight, bias, *settings)
        has_shortcut = shortcut is not None
        ctx.save_for_backward(x, weight, bias, saved, out if has_shortcut and ceiling is not None else None)
        ctx.ceiling, ctx.has_shortcut = ceiling, has_shortcut
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, bias, saved, out = ctx.saved_tensors
        gradient = _channels_last(gradient)
        geometry = Geometry(x)
        parts = geometry.parts(x)
        inner = torch.empty_like(x)
        outer = torch.empty_like(x) if ctx.has_shortcut else None
        affine = torch.empty(2, x.shape[1], device=x.device)  # gradients of weight and bias
        activation = {"CEILING": ctx.ceiling, "FROM_OUT": out is not None}
        tensors = (x, gradient, x if out is None else out, weight, bias, saved)
        if parts is not None:
            _sum_gradient[geometry.summing](*tensors, parts, *geometry.sizes, **activation, **geometry.blocks)
        _differentiate[geometry.writing](
            *tensors, parts if parts is not None else saved, inner, x if outer is None else outer, affine,
            *geometry.sizes, **activation, SHORTCUT=outer is not None, **geometry.blocks, **geometry.known,
        )  # fmt: skip
        return inner, affine[0], affine[1], outer, None, None, None, None, None


def _write(
    geometry: Geometry, x: Tensor, shortcut: Tensor | None, out: Tensor, parts: Tensor | None, saved: Tensor | None,
    weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor, momentum: float, eps: float,
    ceiling: float | None,
) -> None:  # fmt: skip
    """Normalise by the statistics of x, which it saves, or by the running ones if there is nothing to save to."""
    train = saved is not None
    nothing = x  # a tensor where the kernel looks at none
    _normalise[geometry.writing if train else geometry.all](
        x, nothing if shortcut is None else shortcut, out, nothing if parts is None else parts,
        weight, bias, nothing if saved is None else saved, running_mean, running_var, momentum, eps, *geometry.sizes,
        CEILING=ceiling, SHORTCUT=shortcut is not None, TRAIN=train,
        **geometry.blocks, **geometry.known,
    )  # fmt: skip


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


class Geometry:
    """How many programs share the maps, and what each of them holds."""

    def __init__(self, x: Tensor):
        channels = x.shape[1]
        rows = x.numel() // channels
        columns = min(32, triton.next_power_of_2(channels))
        tile = min(TILE // columns, triton.next_power_of_2(rows))
        across = -(-channels // columns)
        tiles = -(-rows // tile)
        whole = rows <= WHOLE
        summing = 1 if whole else min(tiles, TILE // columns)
        writing = 1 if whole else min(tiles, max(1, PROGRAMS // across))
        self._channels = channels
        self._whole = whole
        self._summing = summing
        self.summing = summing, across
        self.writing = writing, across
        self.all = tiles, across
        self.sizes = rows, channels, summing
        self.blocks = {"ROWS": tile, "COLUMNS": columns, "num_warps": 8 if tile * columns >= TILE else 4}
        self.known = {"WHOLE": whole, "PARTS": triton.next_power_of_2(summing)}

    def parts(self, x: Tensor) -> Tensor | None:
        """Two sums for each part and channel; None where no kernel has to hand them to another."""
        return None if self._whole else torch.empty(2, self._summing, self._channels, device=x.device)


@triton.jit
def _moments(x, rows, channels, first, stride, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Of every `stride`-th tile from `first` on, sums of x - pivot and of its square; the pivot is the first row.

    Without one, the variance would be a small difference of large numbers where the mean is large.
    """
    inside = columns < channels
    pivot = tl.load(x + columns, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    squares = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(first * ROWS, rows, stride * ROWS):
        row = start + tl.arange(0, ROWS)
        here = (row < rows)[:, None] & inside[None, :]
        value = tl.load(x + row[:, None] * channels + columns[None, :], mask=here, other=0.0).to(tl.float32)
        moved = tl.where(here, value - pivot[None, :], 0.0)
        total += moved
        squares += moved * moved
    return tl.sum(total, 0), tl.sum(squares, 0)


@triton.jit
def _from_parts(parts, count, channels, columns, PARTS: tl.constexpr):
    """The two sums over all parts."""
    part = tl.arange(0, PARTS)
    here = (part < count)[:, None] & (columns < channels)[None, :]
    at = part[:, None] * channels + columns[None, :]
    first = tl.sum(tl.load(parts + at, mask=here, other=0.0), 0)
    return first, tl.sum(tl.load(parts + count * channels + at, mask=here, other=0.0), 0)


@triton.jit
def _to_parts(parts, count, channels, columns, first, second):
    at = tl.program_id(0) * channels + columns
    tl.store(parts + at, first, mask=columns < channels)
    tl.store(parts + count * channels + at, second, mask=columns < channels)


@triton.jit
def _sum(x, parts, rows, channels, count, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    first, second = _moments(x, rows, channels, tl.program_id(0), count, columns, ROWS, COLUMNS)
    _to_parts(parts, count, channels, columns, first, second)


@triton.jit
def _normalise(
    x, shortcut, out, parts, weight, bias, saved, running_mean, running_var, momentum, eps, rows, channels, count,
    CEILING: tl.constexpr, SHORTCUT: tl.constexpr, TRAIN: tl.constexpr,
    WHOLE: tl.constexpr, PARTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < channels
    old_mean = tl.load(running_mean + columns, mask=inside, other=0.0)
    old_var = tl.load(running_var + columns, mask=inside, other=0.0)
    if TRAIN:
        if WHOLE:
            total, squares = _moments(x, rows, channels, 0, 1, columns, ROWS, COLUMNS)
        else:
            total, squares = _from_parts(parts, count, channels, columns, PARTS)
        moved = total / rows
        mean = moved + tl.load(x + columns, mask=inside, other=0.0).to(tl.float32)
        variance = tl.maximum(squares / rows - moved * moved, 0.0)
    else:
        mean, variance = old_mean, old_var
    inverse = 1.0 / tl.sqrt(variance + eps)
    if TRAIN and tl.program_id(0) == 0:
        tl.store(saved + columns, mean, mask=inside)
        tl.store(saved + channels + columns, inverse, mask=inside)
        tl.store(running_mean + columns, old_mean + momentum * (mean - old_mean), mask=inside)
        unbiased = variance * (rows / (rows - 1.0))
        tl.store(running_var + columns, old_var + momentum * (unbiased - old_var), mask=inside)
    scale = tl.load(weight + columns, mask=inside, other=0.0) * inverse
    shift = tl.load(bias + columns, mask=inside, other=0.0)
    for start in range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS):
        row = start + tl.arange(0, ROWS)
        here = (row < rows)[:, None] & inside[None, :]
        at = row[:, None] * channels + columns[None, :]
        value = tl.load(x + at, mask=here, other=0.0).to(tl.float32)
        value = (value - mean[None, :]) * scale[None, :] + shift[None, :]
        if SHORTCUT:
            value += tl.load(shortcut + at, mask=here, other=0.0).to(tl.float32)
        if CEILING is not None:
            value = tl.where(value > 0, value, tl.where(value != value, value, 0.0))
            value = tl.where(value > CEILING, CEILING, value)
        tl.store(out + at, value.to(out.dtype.element_ty), mask=here)


@triton.jit
def _passed(
    x, gradient, out, at, here, mean, scale, shift, CEILING: tl.constexpr, FROM_OUT: tl.constexpr
):  # fmt: skip
    """What of the gradient the activation lets through, and x - mean."""
    value = tl.load(gradient + at, mask=here, other=0.0).to(tl.float32)
    centred = tl.where(here, tl.load(x + at, mask=here, other=0.0).to(tl.float32) - mean[None, :], 0.0)
    if CEILING is not None:
        if FROM_OUT:
            reached = tl.load(out + at, mask=here, other=0.0).to(tl.float32)
        else:
            reached = centred * scale[None, :] + shift[None, :]
        value = tl.where((reached > 0) & (reached < CEILING), value, 0.0)
    return value, centred


@triton.jit
def _gradient_sums(
    x, gradient, out, mean, scale, shift, rows, channels, first, stride, columns,
    CEILING: tl.constexpr, FROM_OUT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Of every `stride`-th tile from `first` on, sums of the gradient, and of the gradient times x - mean."""
    inside = columns < channels
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    products = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(first * ROWS, rows, stride * ROWS):
        row = start + tl.arange(0, ROWS)
        here = (row < rows)[:, None] & inside[None, :]
        at = row[:, None] * channels + columns[None, :]
        value, centred = _passed(x, gradient, out, at, here, mean, scale, shift, CEILING, FROM_OUT)
        total += value
        products += value * centred
    return tl.sum(total, 0), tl.sum(products, 0)


@triton.jit
def _sum_gradient(
    x, gradient, out, weight, bias, saved, parts, rows, channels, count,
    CEILING: tl.constexpr, FROM_OUT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < channels
    mean = tl.load(saved + columns, mask=inside, other=0.0)
    scale = tl.load(weight + columns, mask=inside, other=0.0) * tl.load(
        saved + channels + columns, mask=inside, other=0.0
    )
    shift = tl.load(bias + columns, mask=inside, other=0.0)
    first, second = _gradient_sums(
        x, gradient, out, mean, scale, shift, rows, channels, tl.program_id(0), count, columns,
        CEILING, FROM_OUT, ROWS, COLUMNS,
    )  # fmt: skip
    _to_parts(parts, count, channels, columns, first, second)


@triton.jit
def _differentiate(
    x, gradient, out, weight, bias, saved, parts, inner, outer, affine, rows, channels, count,
    CEILING: tl.constexpr, FROM_OUT: tl.constexpr, SHORTCUT: tl.constexpr, WHOLE: tl.constexpr, PARTS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < channels
    mean = tl.load(saved + columns, mask=inside, other=0.0)
    inverse = tl.load(saved + channels + columns, mask=inside, other=0.0)
    scale = tl.load(weight + columns, mask=inside, other=0.0) * inverse
    shift = tl.load(bias + columns, mask=inside, other=0.0)
    if WHOLE:
        total, products = _gradient_sums(
            x, gradient, out, mean, scale, shift, rows, channels, 0, 1, columns, CEILING, FROM_OUT, ROWS, COLUMNS
        )
    else:
        total, products = _from_parts(parts, count, channels, columns, PARTS)
    if tl.program_id(0) == 0:
        tl.store(affine + columns, products * inverse, mask=inside)
        tl.store(affine + channels + columns, total, mask=inside)
    level = total / rows
    slope = products / rows * inverse * inverse
    for start in range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS):
        row = start + tl.arange(0, ROWS)
        here = (row < rows)[:, None] & inside[None, :]
        at = row[:, None] * channels + columns[None, :]
        value, centred = _passed(x, gradient, out, at, here, mean, scale, shift, CEILING, FROM_OUT)
        if SHORTCUT:
            tl.store(outer + at, value.to(outer.dtype.element_ty), mask=here)
        result = (value - level[None, :] - centred * slope[None, :]) * scale[None, :]
        tl.store(inner + at, result.to(inner.dtype.element_ty), mask=here)
