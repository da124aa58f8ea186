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
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from results.frames import write_output
from results.page.figures import shorten, styled
from results.store import schema
from results.store.folder import RunFolder
from search_spaces import datasets, machine
from search_spaces.errors import Problem, RequestError, unknown
from search_spaces.grid import Planned
from search_spaces.messages import log
from search_spaces.text import last_line
from search_spaces.trial import PROTOCOL, Trial

# In inches. At so many dots an inch every pixel of an image is a square of eight.
DPI, SIDE = 200, 1.28
GAP = 0.04  # between an image and its map
MARGIN = 0.2
CELL = (2 * SIDE + GAP, SIDE + 0.5)  # with two lines of text
HEADER = 0.9
COLUMNS = 4
NAME = 18  # characters of a class

COLOURS = "viridis"  # whose lightness rises evenly: the order survives a grey printer
OPAQUE = 0.65  # the share of the map's colour; the rest is the image, in grey
GREY = (50, 190)  # of black and white there: with all of the contrast, a white background would pass for evidence

INK, FAINT, RIGHT, WRONG = "#1c1c1e", "#6e6e74", "#187a3c", "#c42828"

Maps = Mapping[str, Any]  # the arrays of `trainer.cam.Activations`, and `names` of the classes


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
    """Draw the maps of a trial's first test images from the weights that it kept; return where. Runs the pool's code.

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
    weights = run.trial(trial.id).weights.read()
    if weights is None:
        raise RequestError.of(
            f"{trial.id} kept no weights: there is no {run.trial(trial.id).weights}; set `keep_weights: true` in the "
            "space file, and train it again with another --out, for a trial that has ended is not run twice"
        )
    if trial.pool.source and not trust:
        raise RequestError.of(
            f"the pool of {trial.id} is code from {trial.pool.source.path}, which has to be run to draw this; read it "
            f"in {run.files.spell(run.space.name)}, and pass --trust if you know whose it is"
        )
    if datasets.get(trial.dataset).torchvision and not data_dir.is_dir():
        what = f"there is no folder {data_dir.resolve()}; give the one that the sweep read {trial.dataset} from"
        raise RequestError.of(what, "--data-dir")
    seen = _activations(trial, weights, data_dir, images, wrong)
    maps = seen["maps"]
    if maps[0].size == 1:
        log.warning(f"note: the feature map of {trial.arch} is 1x1: a map of one position cannot localise anything")
    if not (maps > 0).any():
        log.warning("note: every map is dark: no position of these images has evidence for the class that is predicted")
    method = "CAM, exact (Zhou et al. 2016)" if seen["exact"] else "Grad-CAM through the pool (Selvaraju et al. 2017)"
    size = "x".join(map(str, maps.shape[1:])) + (" map, which cannot localise" if maps[0].size == 1 else " map")
    title = f"{shorten(trial.pool.label)} on {trial.arch}-{trial.dataset}, seed {trial.seed}"
    sink = io.BytesIO()
    with styled():
        picture = render(seen, title, f"{method}; {size}; final test accuracy {accuracy:.2f} %")
        picture.savefig(sink, format="png", dpi=DPI, facecolor="white")
    return write_output(output or run.trial(trial.id).picture(), sink.getvalue())


def _activations(trial: Trial, weights: bytes, data_dir: Path, images: int, wrong: bool) -> Maps:
    """Ask a process that has torch, and may run a stranger's pool.

    Raises:
        RequestError: as that process refuses it, or what the pool raises there.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        asked = {"trial": trial.to_dict(), "data_dir": str(data_dir.resolve()), "images": images, "wrong": wrong}
        (folder / "asked.json").write_text(json.dumps(asked), encoding="utf-8")
        (folder / "weights.pt").write_bytes(weights)
        command, environment = machine.module("trainer.cam", name), machine.environment() | {"PYTHONUNBUFFERED": "1"}
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, check=False)
        said = done.stdout.decode(errors="replace")
        if (problems := folder / "problems.json").exists():
            raise RequestError(Problem(**problem) for problem in json.loads(problems.read_text(encoding="utf-8")))
        if done.returncode or not (folder / "maps.npz").exists():
            raise RequestError.of(f"{trial.id} cannot be drawn: {last_line(said) or f'exit code {done.returncode}'}")
        for line in said.splitlines():
            log.info(line)
        with np.load(folder / "maps.npz") as arrays:
            return dict(arrays)


def find(run: RunFolder, wanted: str) -> tuple[Planned, float]:
    """Return the trial of that id, or of the only id that begins so, and its final test accuracy in percent.

    Raises:
        RequestError: there is none, or more than one; it has not completed; the newest sweep's grid, from which the
            text of its pool comes, does not have it.
    """
    rows = run.trials.read(["trial_id", "status", "final_test_acc"]).to_pylist()
    ended = {row["trial_id"]: row for row in rows}
    planned = {one.trial.id: one for one in run.space.read() or ()}
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


def render(seen: Maps, title: str, subtitle: str) -> Figure:
    """Draw the images with their maps, below a headline, a line under it and the colours."""
    columns = min(COLUMNS, len(seen["images"]))
    rows = -(-len(seen["images"]) // columns)
    width = MARGIN + max(columns, 3) * (CELL[0] + MARGIN)  # the header takes three columns
    height = HEADER + rows * (CELL[1] + MARGIN)
    figure = Figure(figsize=(width, height))

    def place(x: float, y: float, across: float = SIDE, down: float = SIDE) -> Axes:
        """Return axes whose left upper corner is there, in inches from that of the figure."""
        axes = figure.add_axes((x / width, 1 - (y + down) / height, across / width, down / height))
        axes.set_axis_off()
        return axes

    head = place(MARGIN, 0, 1, 1)
    head.text(0, 0.84, title, size=14, color=INK, va="top")
    head.text(0, 0.58, subtitle, size=10, color=FAINT, va="top")
    head.text(0, 0.34, "no evidence, or against", size=8.5, color=FAINT, va="top")
    head.text(2.58, 0.34, "the most for the predicted class in that image", size=8.5, color=FAINT, va="top")
    place(MARGIN + 1.54, 0.67, 0.96, 0.1).imshow(np.linspace(0, 1, 96)[None], cmap=COLOURS, aspect="auto")
    for number in range(len(seen["images"])):
        row, column = divmod(number, columns)
        x, y = MARGIN + column * (CELL[0] + MARGIN), HEADER + row * (CELL[1] + MARGIN)
        one = {name: seen[name][number] for name in ("images", "maps", "labels", "index", "predicted", "probability")}
        _draw_one(one, seen["names"], place(x, y), place(x + SIDE + GAP, y))
    return figure


def _draw_one(one: Maps, names: np.ndarray, left: Axes, right: Axes) -> None:
    """Draw an image [32, 32, C], its map [H, W] over it, and below them its label and what was predicted."""
    image = one["images"]
    low, high = GREY
    grey = low + image.mean(-1) / 255 * (high - low)
    sides = {"extent": (0, 1, 0, 1), "vmin": 0}
    left.imshow(image.squeeze(), cmap="gray", vmax=255, **sides)
    right.imshow(grey, cmap="gray", vmax=255, **sides)
    evidence = np.maximum(one["maps"], 0)
    smooth = {"cmap": COLOURS, "alpha": OPAQUE, "interpolation": "bilinear"}
    right.imshow(evidence, vmax=evidence.max() or 1, **smooth, **sides)

    label, predicted = (str(names[which] if len(names) else which) for which in (one["labels"], one["predicted"]))
    verdict, colour = ("✓", RIGHT) if one["labels"] == one["predicted"] else ("✗", WRONG)
    lines = [
        ("label", shorten(label, NAME), INK, f"#{one['index']}"),
        ("predicted", f"{shorten(predicted, NAME)} {verdict}", colour, f"{100 * one['probability']:.0f} %"),
    ]
    for line, (what, name, ink, note) in enumerate(lines):
        y = -0.05 - 0.16 * line
        left.text(0, y, what, size=9, color=FAINT, va="top")
        left.text(0.52, y, name, size=9, color=ink, va="top")
        right.text(1, y, note, size=9, color=FAINT, va="top", ha="right")
