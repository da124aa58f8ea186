"""A chain of ResNet's basic blocks with identity shortcuts, as Triton kernels: three a block forward, four backward.

A block is x -> relu(norm2(conv2(relu(norm1(conv1(x))))) + x). What stands between two convolutions of few channels is
memory traffic: so it is worked out where a convolution reads or writes its maps anyway. Backward, a block's last kernel
prepares the first of the block before it. That is 24 passes over a map for a block and 7 kernels, where its layers one
by one take 35 and 17.

    forward                                                                       reads           writes
    1   y1 = conv1(x), sums for norm1's statistics                                x               y1
    2   a = relu(norm1(y1)), y2 = conv2(a), sums for norm2's statistics           y1              a, y2
    3   out = relu(norm2(y2) + x)                                                 y2, x           out
    backward, from g, which is the gradient of norm2(y2) + x, and its sums for norm2
    1   dy2 = norm2's gradient, weight gradient of conv2                          g, y2, a        dy2
    2   g1 = gradient of norm1(y1), its sums for norm1                            dy2, y1         g1
    3   dy1 = norm1's gradient, weight gradient of conv1                          g1, y1, x       dy1
    4   gradient of x, which is the output of the block before; its g and sums    dy1, g, x, y2'  g'
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportIndexIssue=false, reportReturnType=false
# Triton reads these functions, Python does not run them: their types are not Python's.

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torchvision.models.resnet import BasicBlock

from trainer.device.kernels import convolution, norm, sgd
from trainer.device.kernels.convolution import products
from trainer.device.kernels.norm import (
    activated,
    affine_of,
    channels_last,
    passes,
    running_statistics,
    share_moments,
    share_slopes,
    statistics,
)

PROGRAMS = 264  # that share a sum: two for each of an H100's 132 multiprocessors


def fits(block: nn.Module) -> bool:
    """Whether this can be one of a chain's blocks."""
    if not isinstance(block, BasicBlock) or block.downsample is not None or type(block.relu) is not nn.ReLU:
        return False
    norms = all(isinstance(each, nn.BatchNorm2d) and each.momentum is not None for each in (block.bn1, block.bn2))
    alike = block.conv1.in_channels == block.conv1.out_channels == block.conv2.out_channels
    return norms and alike and convolution.fits(block.conv1) and convolution.fits(block.conv2)


def chain(blocks: Sequence[BasicBlock], x: Tensor, tickets: Tensor) -> Tensor:
    """Return what the blocks make of x, [B, C, H, W] bf16 or fp32: like x, channels-last.

    Args:
        blocks: each of which `fits`, with C channels, all in training or none. A convolution that has a `half_weight`
            is multiplied by that, in place of its weight.
        tickets: see `norm.tickets`.
    """
    x = channels_last(x)
    if blocks[0].training:
        weights = [tensor for block in blocks for tensor in _weights(block)]
        return _Chain.apply(x, tickets, [_settings(block) for block in blocks], *weights)
    for block in blocks:
        weights, settings = _weights(block), _settings(block)
        inner = _infer(x, weights.multiplied[0], None, weights.scale1, weights.shift1, settings.norm1)
        x = _infer(inner, weights.multiplied[1], x, weights.scale2, weights.shift2, settings.norm2)
    return x


class _Weights(NamedTuple):
    """Of a block: its weights, those in bf16 if it has them, and what its norms multiply by and add."""

    weight1: Tensor
    half1: Tensor | None
    scale1: Tensor
    shift1: Tensor
    weight2: Tensor
    half2: Tensor | None
    scale2: Tensor
    shift2: Tensor

    @property
    def multiplied(self) -> tuple[Tensor, Tensor]:
        first = self.weight1 if self.half1 is None else self.half1
        return first, self.weight2 if self.half2 is None else self.half2


class _Settings(NamedTuple):
    """Of a block's norms: running mean and variance, momentum and epsilon."""

    norm1: tuple[Tensor, Tensor, float, float]
    norm2: tuple[Tensor, Tensor, float, float]


class _Maps(NamedTuple):
    """Of a block: the maps that its backward pass reads, as named above, and mean and 1/deviation, [2, C] fp32."""

    x: Tensor
    y1: Tensor
    saved1: Tensor
    a: Tensor
    y2: Tensor
    saved2: Tensor


def _weights(block: BasicBlock) -> _Weights:
    half1, half2 = (getattr(conv, "half_weight", None) for conv in (block.conv1, block.conv2))
    norms = [(each.weight, each.bias) for each in (block.bn1, block.bn2)]
    return _Weights(block.conv1.weight, half1, *norms[0], block.conv2.weight, half2, *norms[1])


def _settings(block: BasicBlock) -> _Settings:
    return _Settings(
        *((each.running_mean, each.running_var, each.momentum, each.eps) for each in (block.bn1, block.bn2))
    )


class _Sums:
    """How programs share the rows of a map, and where they hand in the sums over it: one after the other, all here."""

    def __init__(self, x: Tensor, tickets: Tensor):
        channels = x.shape[1]
        self.compiled = convolution.tile(x, channels)
        self.pixels = x.numel() // channels
        self.grid = (min(PROGRAMS, triton.cdiv(self.pixels, self.compiled["ROWS"])),)
        self.place = torch.empty(*self.grid, 2, channels, device=x.device), tickets


class _Chain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, tickets: Tensor, settings: list[_Settings], *flat: Tensor | None) -> Tensor:
        sums, maps = _Sums(x, tickets), list[Tensor]()
        after = *sums.place, sums.pixels
        for weights, (norm1, norm2) in zip(_by_block(_Weights, flat), settings, strict=True):
            first, second = weights.multiplied
            y1, a, y2 = (torch.empty_like(x) for _ in range(3))
            saved1, saved2 = (torch.empty(2, x.shape[1], device=x.device) for _ in range(2))
            before = None, None, None, None
            _convolve[sums.grid](x, first, y1, *before, saved1, *norm1, *after, **sums.compiled)
            before = weights.scale1, weights.shift1, saved1, a
            _convolve[sums.grid](y1, second, y2, *before, saved2, *norm2, *after, **sums.compiled)
            maps += _Maps(x, y1, saved1, a, y2, saved2)
            x = norm.normalise(y2, saved2, weights.scale2, weights.shift2, ceiling=math.inf, shortcut=x)
        ctx.save_for_backward(x, *flat, *maps)
        ctx.tickets, ctx.flat = tickets, len(flat)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        out, *rest = ctx.saved_tensors
        blocks = [*zip(_by_block(_Weights, rest[: ctx.flat]), _by_block(_Maps, rest[ctx.flat :]), strict=True)]
        sums = _Sums(out, ctx.tickets)
        after = *sums.place, sums.pixels
        channels = out.shape[1]
        affine1, affine2 = torch.empty(2, len(blocks), 2, channels, device=out.device)  # gradients of scale and shift
        found = list[Tensor | None]()
        g, last = torch.empty_like(out), blocks[-1][1]
        _enter[sums.grid](
            channels_last(gradient), out, g, last.y2, last.saved2, affine2[-1], *after,
            CHANNELS=channels, ROWS=sums.compiled["ROWS"], num_warps=sums.compiled["num_warps"],
        )  # fmt: skip
        for index in reversed(range(len(blocks))):
            weights, maps = blocks[index]
            first, second = weights.multiplied
            dy2, g1, dy1, inner = (torch.empty_like(out) for _ in range(4))
            norm1, norm2 = (weights.scale1, weights.shift1), (weights.scale2, weights.shift2)
            parts2 = convolution.weight_gradient(maps.a, g, maps.y2, dy2, maps.saved2, *norm2, affine2[index])
            before = None, maps.y1, maps.saved1, *norm1, affine1[index]
            _go_back[sums.grid](dy2, second, g1, None, *before, *after, **sums.compiled)
            parts1 = convolution.weight_gradient(maps.x, g1, maps.y1, dy1, maps.saved1, *norm1, affine1[index])
            before = (None,) * 6
            if index:
                other, its = blocks[index - 1]
                before = maps.x, its.y2, its.saved2, other.scale2, other.shift2, affine2[index - 1]
            _go_back[sums.grid](dy1, first, inner, g, *before, *after, **sums.compiled)
            g = inner
            gradients1 = sgd.hand_in(weights.weight1, parts1), None, *affine1[index]
            found[:0] = *gradients1, sgd.hand_in(weights.weight2, parts2), None, *affine2[index]
        return g, None, None, *found


def _by_block(kind: type[Any], flat: Sequence[Any]) -> list[Any]:
    size = len(kind._fields)
    return [kind(*flat[start : start + size]) for start in range(0, len(flat), size)]


def _infer(
    x: Tensor, weight: Tensor, shortcut: Tensor | None, scale: Tensor, shift: Tensor,
    settings: tuple[Tensor, Tensor, float, float],
) -> Tensor:  # fmt: skip
    out, sizes = torch.empty_like(x), convolution.tile(x, x.shape[1])
    running_mean, running_var, _, eps = settings
    pixels = x.numel() // x.shape[1]
    running = running_mean, running_var, eps
    _convolve_and_normalise[(triton.cdiv(pixels, sizes["ROWS"]),)](
        x, weight, out, shortcut, scale, shift, *running, pixels, **sizes
    )  # fmt: skip
    return out


@triton.jit
def _convolve(
    x, weight, out, before_scale, before_shift, before_saved, kept,
    saved, running_mean, running_var, momentum, eps, parts, tickets, pixels,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, FROM: tl.constexpr, TO: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Convolve x, or what a batch norm (`before_`) with ReLU makes of it, and keep that; save the output's moments."""
    channel, output = tl.arange(0, FROM), tl.arange(0, TO)
    if before_saved is not None:
        mean, inverse = statistics(before_saved, channel, FROM)
        scale, shift = affine_of(before_scale, before_shift, inverse, channel, FROM)
        shift -= mean * scale
    else:
        scale, shift = None, None
    pivot = tl.load(running_mean + output)  # near the mean, and read without the map
    first = tl.zeros([TO], tl.float32)
    second = tl.zeros([TO], tl.float32)
    for start in range(tl.program_id(0) * ROWS, pixels, tl.num_programs(0) * ROWS):
        row = start + tl.arange(0, ROWS)
        total = products(x, weight, row, pixels, scale, shift, kept, False, HEIGHT, WIDTH, FROM, TO, ROWS)
        inside, stored = (row < pixels)[:, None], total.to(out.dtype.element_ty)
        tl.store(out + row[:, None] * TO + output[None, :], stored, mask=inside)
        moved = tl.where(inside, stored.to(tl.float32) - pivot[None, :], 0.0)
        first += tl.sum(moved, 0)
        second += tl.sum(moved * moved, 0)
    share_moments(
        parts, tickets, first, second, pivot, saved, running_mean, running_var, momentum, eps, pixels, output, TO
    )  # fmt: skip


@triton.jit
def _convolve_and_normalise(
    x, weight, out, shortcut, scale, shift, running_mean, running_var, eps, pixels,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, FROM: tl.constexpr, TO: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row, output = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, TO)
    total = products(x, weight, row, pixels, None, None, None, False, HEIGHT, WIDTH, FROM, TO, ROWS)
    mean, inverse = running_statistics(running_mean, running_var, eps, output, TO)
    scale, shift = affine_of(scale, shift, inverse, output, TO)
    value = (total - mean[None, :]) * scale[None, :] + shift[None, :]
    at, inside = row[:, None] * TO + output[None, :], (row < pixels)[:, None]
    if shortcut is not None:
        value += tl.load(shortcut + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, activated(value, float("inf")).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _let_through(gradient, reached, centred, inside, first, second, kind: tl.constexpr):
    """Of a gradient what ReLU lets through, as it is stored, and its sums with those of this tile."""
    stored = tl.where(inside & passes(reached, float("inf")), gradient, 0.0).to(kind)
    value = stored.to(tl.float32)
    return stored, first + tl.sum(value, 0), second + tl.sum(value * centred, 0)


@triton.jit
def _enter(
    gradient, out, masked, y, saved, affine, parts, tickets, pixels, CHANNELS: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    """From the gradient of the chain's output, what its ReLU lets through, and the sums of the last norm."""
    columns = tl.arange(0, CHANNELS)
    mean, inverse = statistics(saved, columns, CHANNELS)
    first = tl.zeros([CHANNELS], tl.float32)
    second = tl.zeros([CHANNELS], tl.float32)
    for start in range(tl.program_id(0) * ROWS, pixels, tl.num_programs(0) * ROWS):
        row = start + tl.arange(0, ROWS)
        at, inside = row[:, None] * CHANNELS + columns[None, :], (row < pixels)[:, None]
        centred = tl.load(y + at, mask=inside, other=0.0).to(tl.float32) - mean[None, :]
        reached = tl.load(out + at, mask=inside, other=0.0).to(tl.float32)
        given = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
        kind: tl.constexpr = masked.dtype.element_ty
        stored, first, second = _let_through(given, reached, centred, inside, first, second, kind)
        tl.store(masked + at, stored, mask=inside)
    share_slopes(parts, tickets, first, second, inverse, affine, columns, CHANNELS)


@triton.jit
def _go_back(
    gradient, weight, inner, shortcut, reached, y, saved, scale, shift, affine, parts, tickets, pixels,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, FROM: tl.constexpr, TO: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """From the gradient of a convolution's output to that of its input, through a ReLU before it, to a norm's sums.

    Args:
        inner: where the gradient goes.
        shortcut: another gradient of the same map, or None.
        reached: what that ReLU gave. None: that is worked out from y. The map is a chain's input if y is None as well.
        y: what the norm before that ReLU read, whose gradients of weight and bias go to affine.
    """
    output = tl.arange(0, TO)
    if y is not None:
        mean, inverse = statistics(saved, output, TO)
        factor, offset = affine_of(scale, shift, inverse, output, TO)
    first = tl.zeros([TO], tl.float32)
    second = tl.zeros([TO], tl.float32)
    for start in range(tl.program_id(0) * ROWS, pixels, tl.num_programs(0) * ROWS):
        row = start + tl.arange(0, ROWS)
        total = products(gradient, weight, row, pixels, None, None, None, True, HEIGHT, WIDTH, FROM, TO, ROWS)
        at, inside = row[:, None] * TO + output[None, :], (row < pixels)[:, None]
        kind: tl.constexpr = inner.dtype.element_ty
        if shortcut is not None:
            total += tl.load(shortcut + at, mask=inside, other=0.0).to(tl.float32)
        if y is None:
            stored = total.to(kind)
        else:
            centred = tl.load(y + at, mask=inside, other=0.0).to(tl.float32) - mean[None, :]
            if reached is None:
                passed = centred * factor[None, :] + offset[None, :]
            else:
                passed = tl.load(reached + at, mask=inside, other=0.0).to(tl.float32)
            stored, first, second = _let_through(total, passed, centred, inside, first, second, kind)
        tl.store(inner + at, stored, mask=inside)
    if y is not None:
        share_slopes(parts, tickets, first, second, inverse, affine, output, TO)
