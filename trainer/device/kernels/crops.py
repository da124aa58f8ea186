"""Crop, flip and normalisation of a batch as one Triton kernel: what `trainer.augment` does in a dozen on a CPU."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportIndexIssue=false, reportReturnType=false
# Triton reads these functions, Python does not run them: their types are not Python's.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 256  # pixels of a program


def crops(pixels: Tensor, draws: Tensor, shift: Tensor, scale: Tensor, *, area: int, row: int, size: int) -> Tensor:
    """Return (pixel - shift) scale of windows of padded images: [B, 3, size, size] fp32, channels-last.

    Args:
        pixels: [N area, C] uint8, of N images with rows of `row` pixels; one channel is repeated to three.
        draws: [B, 4] int64: image, top, left, whether its columns run backwards.
        shift, scale: [>= C] fp32, by channel.
    """
    out = torch.empty(len(draws), 3, size, size, device=pixels.device, memory_format=torch.channels_last)
    total = len(draws) * size * size
    settings = {"AREA": area, "ROW": row, "SIZE": size, "CHANNELS": pixels.shape[1], "ROWS": ROWS}
    _crop[(triton.cdiv(total, ROWS),)](pixels, draws, shift, scale, out, total, **settings)
    return out


@triton.jit
def _crop(
    pixels, draws, shift, scale, out, total,
    AREA: tl.constexpr, ROW: tl.constexpr, SIZE: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = pixel < total
    draw = draws + (pixel // (SIZE * SIZE)) * 4
    image = tl.load(draw, mask=inside, other=0)
    top = tl.load(draw + 1, mask=inside, other=0)
    left = tl.load(draw + 2, mask=inside, other=0)
    flip = tl.load(draw + 3, mask=inside, other=0)
    line, column = (pixel // SIZE) % SIZE, pixel % SIZE
    column = tl.where(flip > 0, SIZE - 1 - column, column)
    source = image * AREA + (top + line) * ROW + left + column
    for channel in tl.static_range(3):
        of = channel % CHANNELS
        value = tl.load(pixels + source * CHANNELS + of, mask=inside, other=0).to(tl.float32)
        tl.store(out + pixel * 3 + channel, (value - tl.load(shift + of)) * tl.load(scale + of), mask=inside)
