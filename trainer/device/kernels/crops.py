"""A batch of images as one Triton kernel: what `trainer.augment` does in a dozen on a CPU.

It finds the batch in the epoch's draws, cuts the windows, flips, normalises, and fetches the labels, in the type that
the first convolution multiplies.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportIndexIssue=false, reportReturnType=false
# Triton reads these functions, Python does not run them: their types are not Python's.

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

COLOURS = 3
ROWS = 256  # pixels of a program


def crops(
    pixels: Tensor, labels: Tensor, draws: Tensor, cursor: Tensor, size: int, half: bool,
    *, shift: Tensor, scale: Tensor, area: int, row: int, side: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return (pixel - shift) scale of windows of images, [size, 3, side, side] channels-last, and labels [size].

    Args:
        pixels: [N area, C] uint8, of N images with rows of `row` pixels; one channel is repeated to three.
        labels: [N] int64.
        draws: int64, one row for each image of the batch: [M, 4], image, top, left, whether its columns run backwards;
            or [M], the image, whose window starts at its first pixel.
        cursor: [] int64, of the first row.
        half: in bfloat16, not fp32.
        shift, scale: [>= C] fp32, by channel.
    """
    kind = torch.bfloat16 if half else torch.float32
    shape = size, COLOURS, side, side
    out = torch.empty(shape, dtype=kind, device=pixels.device, memory_format=torch.channels_last)
    found = torch.empty(size, dtype=torch.int64, device=pixels.device)
    total = size * side * side
    _crop[(triton.cdiv(total, ROWS),)](
        pixels, labels, draws, cursor, shift, scale, out, found, total,
        DRAWN=draws.dim() == 2, AREA=area, ROW=row, SIDE=side, FROM=pixels.shape[1], ROWS=ROWS,
    )  # fmt: skip
    return out, found


def _traffic(_: Any, __: Any, given: Any) -> dict[str, int]:
    """Of the dataset the windows alone, and of the draws those of the batch: see `trainer.device.launches`."""
    batch, out = len(given["found"]), given["out"].nbytes
    drawn = given["draws"].nbytes // len(given["draws"])
    return {"bytes": given["total"] * given["FROM"] + batch * (drawn + 2 * 8) + out}  # a label read, and written


@triton.jit(launch_metadata=_traffic)
def _crop(
    pixels, labels, draws, cursor, shift, scale, out, found, total,
    DRAWN: tl.constexpr, AREA: tl.constexpr, ROW: tl.constexpr, SIDE: tl.constexpr, FROM: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = pixel < total
    which = pixel // (SIDE * SIDE)
    line, column = (pixel // SIDE) % SIDE, pixel % SIDE
    if DRAWN:
        draw = draws + (tl.load(cursor) + which) * 4
        image = tl.load(draw, mask=inside, other=0)
        top = tl.load(draw + 1, mask=inside, other=0)
        left = tl.load(draw + 2, mask=inside, other=0)
        flip = tl.load(draw + 3, mask=inside, other=0)
        from_column = left + tl.where(flip > 0, SIDE - 1 - column, column)
        source = image * AREA + (top + line) * ROW + from_column
    else:
        image = tl.load(draws + tl.load(cursor) + which, mask=inside, other=0)
        source = image * AREA + line * ROW + column
    tl.store(found + which, tl.load(labels + image, mask=inside, other=0), mask=inside & (line == 0) & (column == 0))
    for channel in tl.static_range(3):
        of = channel % FROM
        value = tl.load(pixels + source * FROM + of, mask=inside, other=0).to(tl.float32)
        value = (value - tl.load(shift + of)) * tl.load(scale + of)
        tl.store(out + pixel * 3 + channel, value.to(out.dtype.element_ty), mask=inside)
