"""A trial's class activation maps as a picture: what in an image its network's prediction comes from.

Each image stands beside its map, which `python -m trainer.cam` makes in a process of its own. The map is cut off at
zero, enlarged to the image's size by bilinear interpolation, and coloured from zero to its largest value. So CAM and
Grad-CAM are drawn alike: dark is no evidence for the predicted class, or evidence against it, and bright is the most
evidence that there is in that image.
"""

from __future__ import annotations

import difflib
import io
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from results.store import schema
from results.store.folder import RunFolder
from search_spaces import datasets, machine
from search_spaces.errors import Problem, RequestError, unknown
from search_spaces.grid import Planned
from search_spaces.messages import log
from search_spaces.trial import PROTOCOL, Trial

ENLARGED = 4
SIDE = 32 * ENLARGED
GAP = 4  # between an image and its map
MARGIN = 20
CELL = (2 * SIDE + GAP, SIDE + 50)  # with two lines of text
HEADER = 88
COLUMNS = 4

# Lightness rises evenly from one end to the other, by some 20 of 100 a step: the order survives a grey printer.
COLOURS = ((19, 16, 66), (28, 68, 122), (21, 123, 128), (92, 176, 92), (250, 228, 74))
OPAQUE = 0.65  # the share of the map's colour; the rest is the image, in grey
GREY = (50, 190)  # of black and white there: with all of the contrast, a white background would pass for evidence

INK, FAINT, RIGHT, WRONG = (28, 28, 30), (110, 110, 116), (24, 122, 60), (196, 40, 40)

Pixels = npt.NDArray[np.uint8]


def draw(
    run: RunFolder,
    wanted: str,
    data_dir: Path,
    images: int,
    *,
    wrong: bool = False,
    trust: bool = False,
    output: Path | None = None,
) -> str:
    """Draws the maps of a trial's first test images, from the weights that it kept; where to. Runs the pool's code.

    Args:
        wanted: the trial's id, or the beginning of it.
        wrong: only of images that are misclassified.
        trust: run the code of a pool that came from a file: the text that the run folder has, whoever wrote it.
        output: where to; RUN/cam/<trial id>.png unless given.

    Raises:
        RequestError: there is no such trial, or it kept no weights, or its pool's code is not trusted, or there is no
            folder of images, or the picture cannot be written.
    """
    if images < 1:
        raise RequestError.of(f"--images: expected 1 or more, got {images}")
    planned, accuracy = find(run, wanted)
    trial = planned.trial
    if trial.protocol != PROTOCOL:
        raise RequestError.of(
            f"{trial.id} was trained by protocol {trial.protocol}, whose networks this version does not build (it has "
            f"protocol {PROTOCOL}); draw it with the version that trained it"
        )
    weights = run.weights(trial.id).read()
    if weights is None:
        raise RequestError.of(
            f"{trial.id} kept no weights: there is no {run.weights(trial.id)}; set `keep_weights: true` in the "
            "space file, and train it again with another --out, for a trial that has ended is not run twice"
        )
    if trial.pool.source and not trust:
        raise RequestError.of(
            f"the pool of {trial.id} is code from {trial.pool.source.path}, which has to be run to draw this; read it "
            f"in {run.files.spell('space.yaml')}, and pass --trust if you know whose it is"
        )
    if datasets.get(trial.dataset).torchvision and not data_dir.is_dir():
        what = f"there is no folder {data_dir.resolve()}; give the one that the sweep read {trial.dataset} from"
        raise RequestError.of(what, "--data-dir")
    seen = _activations(trial, weights, data_dir, images, wrong)
    if seen.maps[0].size == 1:
        log.warning(f"note: the feature map of {trial.arch} is 1x1: a map of one position cannot localise anything")
    if not (seen.maps > 0).any():
        log.warning("note: every map is dark: no position of these images has evidence for the class that is predicted")
    picture = render(
        seen, [f"{trial.pool.label} on {trial.arch}-{trial.dataset}, seed {trial.seed}", _how(seen, accuracy)]
    )
    sink = io.BytesIO()
    picture.save(sink, "PNG")
    try:
        if output is None:
            return run.write_picture(trial.id, sink.getvalue())
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_bytes(sink.getvalue())
        return str(output)
    except OSError as error:
        raise RequestError.of(f"the picture cannot be written: {error}; give another --output") from None


@dataclass(frozen=True, slots=True)
class Activations:
    """What a network looks at in N test images, as `python -m trainer.cam` gives it.

    Attributes:
        images: [N, 32, 32, C] uint8.
        labels: [N] int64.
        index: [N] int64, which images of the test set.
        predicted: [N] int64, the class with the largest logit: that of the map.
        probability: [N] float32, of that class, by the softmax.
        maps: [N, H, W] float32, in units of the logit.
        exact: [], whether they are CAM; Grad-CAM if not.
        names: [classes], what the classes are called; empty where nobody says.
    """

    images: Pixels
    labels: npt.NDArray[np.int64]
    index: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int64]
    probability: npt.NDArray[np.float32]
    maps: npt.NDArray[np.float32]
    exact: npt.NDArray[np.bool_]
    names: npt.NDArray[np.str_]


def _activations(trial: Trial, weights: bytes, data_dir: Path, images: int, wrong: bool) -> Activations:
    """Ask a process that has torch, and may run a stranger's pool.

    Raises:
        RequestError: as that process refuses it, or what the pool raises there.
    """
    asked = {"trial": trial.to_dict(), "data_dir": str(data_dir.resolve()), "images": images, "wrong": wrong}
    done = subprocess.run(
        machine.module("trainer.cam"),
        input=json.dumps(asked).encode() + b"\n" + weights,
        capture_output=True,
        env=machine.environment(),
        check=False,
    )
    said = done.stderr.decode(errors="replace").splitlines()
    if done.returncode == 2:
        raise RequestError(Problem(**problem) for problem in json.loads(done.stdout))
    if done.returncode:
        raise RequestError.of(f"{trial.id} cannot be drawn: {said[-1] if said else f'exit code {done.returncode}'}")
    for line in said:
        log.info(line)
    with np.load(io.BytesIO(done.stdout)) as arrays:
        return Activations(**arrays)


def find(run: RunFolder, wanted: str) -> tuple[Planned, float]:
    """The trial of that id, or of the only id that begins so, and its final test accuracy in percent.

    Raises:
        RequestError: there is none, or more than one; it has not completed; the newest sweep's grid, from which the
            text of its pool comes, does not have it.
    """
    rows = run.read_trials(["trial_id", "status", "final_test_acc"]).to_pylist()
    ended = {row["trial_id"]: row for row in rows}
    planned = {one.trial.id: one for one in run.grid() or ()}
    known = sorted({*ended, *planned})
    begin = [wanted] if wanted in known else [name for name in known if name.startswith(wanted)]
    if not begin:
        near = difflib.get_close_matches(wanted, known, n=8, cutoff=0)
        rest = f", and {len(known) - len(near)} more" if len(known) > len(near) else ""
        raise RequestError.of(unknown("trial", wanted, near) + rest)
    if len(begin) > 1:
        some = ", ".join(begin[:8]) + ", ..." * (len(begin) > 8)
        raise RequestError.of(f"{len(begin)} trials begin with {wanted!r}: {some}; give more of the id")
    name = begin[0]
    if name not in planned:
        raise RequestError.of(
            f"{name} is not in the newest grid of {run} (space.yaml), where its pool would be read from; run the "
            "sweep that had it once more, which trains nothing that has ended"
        )
    status = ended[name]["status"] if name in ended else None
    if status != schema.COMPLETED:
        so_far = f"ended as {status}" if status else "has not ended yet"
        raise RequestError.of(f"{name} {so_far}; only a trial that has completed keeps its weights")
    return planned[name], ended[name]["final_test_acc"]


def render(seen: Activations, title: list[str]) -> Image.Image:
    """Draw the images with their maps, below a headline and a line under it."""
    images = seen.images
    columns = min(COLUMNS, len(images))
    grid = columns * (CELL[0] + MARGIN) + MARGIN
    width = max(
        grid, *(round(_font(size).getlength(line)) + 2 * MARGIN for line, size in zip(title, (20, 14), strict=True))
    )
    rows = -(-len(images) // columns)
    canvas = Image.new("RGB", (width, HEADER + rows * (CELL[1] + MARGIN)), "white")
    _head(canvas, title)
    for number in range(len(images)):
        row, column = divmod(number, columns)
        at = (MARGIN + column * (CELL[0] + MARGIN), HEADER + row * (CELL[1] + MARGIN))
        canvas.paste(_beside(images[number], seen.maps[number]), at)
        label, predicted = int(seen.labels[number]), int(seen.predicted[number])
        spelled = [str(seen.names[which]) if len(seen.names) else str(which) for which in (label, predicted)]
        certainty = f"{100 * seen.probability[number]:.0f} %"
        _caption(canvas, (at[0], at[1] + SIDE + 6), spelled, certainty, label == predicted, int(seen.index[number]))
    return canvas


def _how(seen: Activations, accuracy: float) -> str:
    method = "CAM, exact (Zhou et al. 2016)" if seen.exact else "Grad-CAM through the pool (Selvaraju et al. 2017)"
    size = "x".join(map(str, seen.maps.shape[1:]))
    note = ", which cannot localise" if seen.maps[0].size == 1 else ""
    return f"{method}; {size} map{note}; final test accuracy {accuracy:.2f} %"


def _head(canvas: Image.Image, title: list[str]) -> None:
    pen = ImageDraw.Draw(canvas)
    pen.text((MARGIN, 12), title[0], INK, _font(20))
    pen.text((MARGIN, 39), title[1], FAINT, _font(14))
    x, y, font = MARGIN, 62, _font(12)
    pen.text((x, y), "no evidence, or against", FAINT, font)
    x += round(font.getlength("no evidence, or against")) + 6
    bar = colours(np.linspace(0, 1, 96)[None].repeat(10, 0))
    canvas.paste(Image.fromarray(bar), (x, y + 3))
    pen.text((x + 102, y), "the most for the predicted class in that image", FAINT, font)


def _beside(image: Pixels, activations: npt.NDArray[np.float32]) -> Image.Image:
    """An image [32, 32, C], enlarged, and its map [H, W] over it."""
    small = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    plain = small.convert("RGB").resize((SIDE, SIDE), Image.Resampling.NEAREST)
    positive = np.maximum(activations, 0)
    share = positive / (positive.max() or 1)
    smooth = np.asarray(Image.fromarray(share).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    grey = plain.convert("L").point([round(GREY[0] + level / 255 * (GREY[1] - GREY[0])) for level in range(256)])
    over = Image.blend(grey.convert("RGB"), Image.fromarray(colours(smooth)), OPAQUE)
    both = Image.new("RGB", (2 * SIDE + GAP, SIDE), "white")
    both.paste(plain, (0, 0))
    both.paste(over, (SIDE + GAP, 0))
    return both


def colours(shares: npt.NDArray[np.floating]) -> Pixels:
    """[...] in 0..1 -> [..., 3]: piecewise linear between COLOURS, at equal distances."""
    at = np.linspace(0, 1, len(COLOURS))
    channels = [np.interp(shares, at, values) for values in zip(*COLOURS, strict=True)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def _caption(
    canvas: Image.Image, at: tuple[int, int], spelled: list[str], certainty: str, right: bool, index: int
) -> None:
    """Below an image: its label and number, and what was predicted how surely, with a mark."""
    pen, font, (x, y) = ImageDraw.Draw(canvas), _font(13), at
    indent, end = x + 66, x + CELL[0]
    pen.text((x, y), "label", FAINT, font)
    pen.text((x, y + 20), "predicted", FAINT, font)
    for line, note in enumerate((f"#{index}", certainty)):
        name = _shortened(spelled[line], font, end - indent - 24 - round(font.getlength(note)))
        colour = INK if line == 0 else RIGHT if right else WRONG
        pen.text((indent, y + 20 * line), name, colour, font)
        pen.text((end, y + 20 * line), note, FAINT, font, anchor="ra")
        if line:
            mark = _mark(right)
            canvas.paste(Image.new("RGB", mark.size, colour), (indent + round(font.getlength(name)) + 5, y + 22), mark)


def _mark(right: bool) -> Image.Image:
    """A check or a cross, as a mask: not every font has them."""
    mask = Image.new("L", (48, 48))
    strokes = [[(6, 26), (19, 39), (42, 10)]] if right else [[(9, 9), (39, 39)], [(39, 9), (9, 39)]]
    for stroke in strokes:
        ImageDraw.Draw(mask).line(stroke, 255, 8, joint="curve")
    return mask.resize((12, 12), Image.Resampling.LANCZOS)


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _font(size: int) -> ImageFont.FreeTypeFont:
    return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size))  # Pillow's own, so the same on every machine
