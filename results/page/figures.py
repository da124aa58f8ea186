"""The pictures of a run folder: learning curves, paired differences, accuracy against cost.

Each is a small matplotlib figure for one architecture on one dataset, so that a page can set them side by side and a
phone below each other. A pool looks the same in all of them. Whoever imports this pays for matplotlib.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from results.frames import Frames
from results.store import schema
from results.table import leaderboard, render
from results.table.trials import METRICS, NEEDS, Selection, select
from search_spaces.errors import RequestError
from search_spaces.grid import BASELINE

# Okabe and Ito's colours, which the colour-blind tell apart, without the yellow and with the light ones darkened to
# 3:1 on white. In a page each of them, and ink, rule and paper, is a CSS variable: the dark theme has others.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b8568f", "#c48200", "#3b97cf")
DASHES = ((), (5, 2), (1.2, 1.6), (6, 2, 1.2, 2))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK, RULE, PAPER = "#010203", "#d5d6d7", "#fefdfc"

WIDTH = 4.2  # inches
BANDS = 8  # pools: the bands of more than these hide each other
LONGEST = 26  # characters of a label in a picture


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool, or a revision of one, and how it looks in every picture. `name` tells it from all others."""

    name: str
    role: str
    place: int

    @property
    def colour(self) -> str:
        return COLOURS[self.place % len(COLOURS)]

    @property
    def dash(self) -> tuple[float, ...]:
        return DASHES[self.place // len(COLOURS) % len(DASHES)]

    @property
    def marker(self) -> str:
        return MARKERS[self.place % len(MARKERS)]

    @property
    def fill(self) -> str:
        """Of its marker: a baseline's is hollow."""
        return PAPER if self.role == BASELINE else self.colour


Pair = tuple[str, str]


@dataclass(frozen=True)
class Measured:
    """What the pictures and the page are made of: the frames of one run folder, under the table's names.

    Attributes:
        frame: the tidy table, with `name`.
        table: the same, laid out; its rows are `pools`, in order.
        against: one row of `frame` for each (name, arch, dataset), with the difference to `best` of that pair.
        best: {pair: the name of its best baseline}.
        recorded: the trials that have ended, all columns.
        trials: one row for each trial on record or asked for: name, seed, status, metrics, costs.
        epochs: one row for each epoch, with name and status.
    """

    metric: str
    pools: Sequence[Pool]
    table: render.Wide
    frame: pd.DataFrame
    against: pd.DataFrame
    best: dict[Pair, str]
    recorded: pd.DataFrame
    trials: pd.DataFrame
    epochs: pd.DataFrame

    def of(self, frame: pd.DataFrame, pair: Pair) -> pd.DataFrame:
        return frame[(frame["arch"] == pair[0]) & (frame["dataset"] == pair[1])]


def measure(
    run: Frames,
    metric: str = METRICS[0],
    allow_mixed: bool = False,
    latest: bool = False,
    pairs: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
) -> Measured:
    """Read the run folder; the arguments are those of `Frames.leaderboard`.

    Raises:
        RequestError: as `Frames.leaderboard`.
    """
    recorded, grids = run.folder.trials.read().to_pandas(), run.grids()
    chosen = Selection(metric, allow_mixed, latest, pairs=pairs, seeds=seeds)
    frame = leaderboard.cells(recorded[NEEDS], grids, chosen, run.folder.equivalences.read())
    named = select(recorded[NEEDS], grids, chosen)
    name_of = leaderboard.names(frame)

    def with_names(table: pd.DataFrame) -> pd.DataFrame:
        names = [name_of(*key) for key in zip(table["pool"], table["revision"], strict=True)]
        return table.assign(name=pd.Series(names, index=table.index, dtype=object))

    frame, named = with_names(frame), with_names(named)
    best = leaderboard.best_baselines(frame)
    against = _against(frame, best)
    rest = [column for column in recorded.columns if column == "trial_id" or column not in named.columns]
    trials = named.merge(recorded[rest], on="trial_id", how="left")
    epochs = run.folder.epochs.read(["trial_id", "epoch", "test_acc", "epoch_s"]).to_pandas()
    epochs = epochs.merge(named[["trial_id", "name", "arch", "dataset", "seed", "status"]], on="trial_id")
    wide = render.Wide(frame, metric)
    pools = [Pool(row.name, row.role, place) for place, row in enumerate(wide.rows)]
    return Measured(metric, pools, wide, frame, against, best, recorded, trials, epochs)


def _against(frame: pd.DataFrame, best: dict[Pair, str]) -> pd.DataFrame:
    """One row for each cell: that of the pair's best baseline, or of no baseline."""
    wanted = [best.get(pair) for pair in zip(frame["arch"], frame["dataset"], strict=True)]
    baselines = frame["baseline"].astype(object)
    hit = [not pd.isna(one) and one == other for one, other in zip(baselines, wanted, strict=True)]
    ordered = frame.assign(hit=np.array(hit, bool), best=pd.Series(wanted, index=frame.index, dtype=object))
    ordered = ordered.sort_values("hit", ascending=False, kind="stable")
    found = ordered.drop_duplicates(["name", "arch", "dataset"]).sort_index()
    found["is_best"] = (found["role"] == BASELINE) & (found["pool"].astype(object) == found["best"])
    found.loc[~found["hit"], ["diff", "diff_lo", "diff_hi", "p"]] = math.nan
    return found


# The pictures


@dataclass(frozen=True)
class Picture:
    """A figure, and where it belongs.

    Attributes:
        kind: `curves`, `differences` or `cost`.
        topic: what is measured, for a picture of costs.
        text: what it shows, for who cannot see it.
    """

    kind: str
    pair: Pair
    topic: str
    text: str
    figure: Figure

    @property
    def file_name(self) -> str:
        parts = [self.kind, *self.pair, *([self.topic] if self.topic else [])]
        return re.sub(r"[^A-Za-z0-9_.-]+", "_", "-".join(parts))


def pictures(measured: Measured, alone: bool = False) -> Iterator[Picture]:
    """Every picture that there is something for.

    Args:
        alone: with title and legend, for a picture that no page says them for.
    """
    for pair in measured.table.pairs:
        for kind, draw in (("curves", curves), ("differences", differences)):
            with _quietly():
                made = draw(measured, pair, alone)
            if made:
                yield Picture(kind, pair, "", made[1], made[0])
    for pair in measured.table.pairs:
        for topic in COSTS:
            with _quietly():
                made = cost(measured, pair, topic, alone)
            if made:
                yield Picture("cost", pair, topic, made[1], made[0])


Drawn = tuple[Figure, str] | None


def curves(measured: Measured, pair: Pair, alone: bool = False) -> Drawn:
    """Mean test accuracy over epochs by pool, and the range over its seeds as a band.

    Of the trials that have completed; where there is none, of those under way, as far as all of them have come. One
    that diverged, collapsed or failed is a thin line of its own that ends in a cross: it would bend a mean.
    """
    epochs = measured.of(measured.epochs, pair)
    epochs = epochs[np.isfinite(epochs["test_acc"])]
    if epochs.empty:
        return None
    figure, axes = _figure(2.9)
    shown, lows, ends = [], [], []
    broke = [schema.DIVERGED, schema.COLLAPSED, schema.FAILED]
    last = int(epochs["epoch"].max())
    banded = epochs["name"].nunique() <= BANDS
    for pool in measured.pools:
        mine = epochs[epochs["name"] == pool.name]
        for _, broken in mine[mine["status"].isin(broke)].groupby("trial_id"):
            broken = broken.sort_values("epoch")
            axes.plot(broken["epoch"], broken["test_acc"], color=pool.colour, lw=0.6, alpha=0.7)
            ends.append((broken["epoch"].iloc[-1], broken["test_acc"].iloc[-1]))
            shown.append(pool)
        completed = mine[mine["status"] == schema.COMPLETED]
        good = completed if len(completed) else mine[mine["status"] == "missing"]
        if good.empty:
            continue
        by_epoch = good.groupby("epoch")["test_acc"].agg(["mean", "min", "max", "count"])
        by_epoch = by_epoch[by_epoch["count"] == good["trial_id"].nunique()]
        if by_epoch.empty:
            continue
        x = by_epoch.index.to_numpy(float)
        style: dict[str, Any] = {"color": pool.colour, "lw": 1.4, "dashes": pool.dash or (None, None)}
        if len(x) == 1:
            style |= {"marker": pool.marker, "ms": 5, "markerfacecolor": pool.fill}
        axes.plot(x, by_epoch["mean"].to_numpy(), **style)
        if banded and by_epoch["count"].max() > 1:
            axes.fill_between(x, by_epoch["min"], by_epoch["max"], color=pool.colour, alpha=0.15, lw=0)
        settled = by_epoch["min" if banded else "mean"][x >= last / 4]
        lows.append(float(settled.min()) if len(settled) else float(by_epoch["mean"].min()))
        shown.append(pool)
    low, high = min(lows, default=0.0), float(epochs["test_acc"].max())
    room = max((high - low) * 0.06, 0.5)
    axes.set_ylim(max(0, low - room), min(100.5, high + room))  # the climb of the first quarter would hide the rest
    axes.set_xlim(*((1, last) if last > 1 else (0, 2)))
    bottom = axes.get_ylim()[0]  # what has collapsed is below: its end stands on the axis
    for x, y in ends:
        axes.plot([x], [max(y, bottom)], "x", color=INK, ms=4.5, mew=1.3, zorder=5, clip_on=False)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel("test accuracy, %")
    pools = [pool for pool in measured.pools if pool in shown]
    _dress(figure, axes, pair, pools, alone, lines=True)
    return figure, f"Test accuracy over {last} epochs on {'-'.join(pair)}, {len(pools)} pools"


def differences(measured: Measured, pair: Pair, alone: bool = False) -> Drawn:
    """A forest plot: each pool's mean paired difference to the best baseline, its 95 % t interval, and each seed."""
    rows = measured.of(measured.against, pair).set_index("name")
    compared = set(rows.index[~rows["is_best"] & rows["diff"].notna()])
    pools = [pool for pool in measured.pools if pool.name in compared]
    best = measured.best.get(pair)
    if not pools or best is None:
        return None
    seeds = {pool.name: _seed_differences(measured, pair, pool.name, best) for pool in pools}
    figure, axes = _figure(0.72 + 0.27 * max(2, len(pools)))
    points = np.concatenate([np.array([rows.loc[pool.name, "diff"] for pool in pools], float), *seeds.values(), [0.0]])
    low, high = float(points.min()), float(points.max())
    reach = max(high - low, 0.2)
    # Two seeds have intervals of twelve standard errors: those would leave nothing to see of the others.
    ends = (low - 1.0 * reach, high + 1.0 * reach)
    extent = [low, high]
    for y, pool in enumerate(pools):
        row: Any = rows.loc[pool.name]
        x, lo, hi = float(row["diff"]), float(row["diff_lo"]), float(row["diff_hi"])
        style: dict[str, Any] = {"color": pool.colour, "clip_on": True}
        if not math.isnan(lo):
            axes.plot([max(lo, ends[0]), min(hi, ends[1])], [y, y], lw=1.8, solid_capstyle="butt", **style)
            for end, cut, arrow in ((lo, lo < ends[0], "<"), (hi, hi > ends[1], ">")):
                axes.plot([min(max(end, ends[0]), ends[1])], [y], arrow if cut else "|", ms=5 if cut else 7, **style)
            extent += [max(lo, ends[0]), min(hi, ends[1])]
        axes.plot(seeds[pool.name], np.full(len(seeds[pool.name]), y + 0.26), ".", ms=4.5, alpha=0.8, mew=0, **style)
        axes.plot([x], [y], pool.marker, ms=5.5, markerfacecolor=pool.fill, zorder=4, **style)
    axes.axvline(0, color=INK, lw=0.9, zorder=1)
    room = 0.05 * (max(extent) - min(extent) or 1)
    axes.set_xlim(min(extent) - room, max(extent) + room)
    axes.set_ylim(max(2, len(pools)) - 0.45, -0.6)
    axes.set_yticks(range(len(pools)), [shorten(pool.name) for pool in pools], parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+.3g}".replace("-", "−") if value else "0"))
    axes.set_xlabel("")
    _label([axes.xaxis.label], [f"points of accuracy against {shorten(best)}"], longest=60)
    axes.spines["left"].set_visible(False)
    _dress(figure, axes, pair, pools, alone, legend=False)
    return figure, f"Differences to {best} on {'-'.join(pair)} with 95 % intervals, {len(pools)} pools"


def _seed_differences(measured: Measured, pair: Pair, name: str, best: str) -> np.ndarray:
    done = measured.of(measured.trials, pair)
    done = done[done["status"] == schema.COMPLETED]
    ours, theirs = (done[done["name"] == one].set_index("seed")[measured.metric] for one in (name, best))
    # Of a name with two recipes in one table, the second has no row here: `against` compares one.
    both = ours[~ours.index.duplicated()] - theirs[~theirs.index.duplicated()]
    return both.dropna().to_numpy(float)


# {column of the trials: what the axis is called}
COSTS = {
    "pool_params_count": "parameters of the pool",
    "pool_times_gap": "time of the pool, average pooling's = 1",
    "train_s": "training time of a trial",
}


def cost(measured: Measured, pair: Pair, topic: str, alone: bool = False) -> Drawn:
    """Mean accuracy, with its standard deviation, against what the pool costs."""
    done = measured.of(measured.trials, pair)
    done = done[(done["status"] == schema.COMPLETED) & done[topic].notna()]
    spent = done.groupby("name")[topic].mean()
    rows = measured.of(measured.against, pair).set_index("name")
    pools = [p for p in measured.pools if p.name in spent.index and rows.loc[p.name, "n"]]
    if not pools:
        return None
    x = np.array([spent.loc[pool.name] for pool in pools], float)
    label = COSTS[topic]
    if topic == "train_s":
        unit, seconds = next(
            one for one in (("h", 3600), ("min", 60), ("s", 1)) if x.max() >= 3 * one[1] or one[1] == 1
        )
        x, label = x / seconds, f"{label}, {unit}"
    figure, axes = _figure(2.6)
    for at, pool in zip(x, pools, strict=True):
        row: Any = rows.loc[pool.name]
        spread = 0.0 if math.isnan(row["std"]) else float(row["std"])
        axes.errorbar(
            [at], [float(row["mean"])], yerr=[spread] if spread else None, color=pool.colour, lw=1.1, zorder=2
        )
        axes.plot([at], [float(row["mean"])], pool.marker, color=pool.colour, ms=6, markerfacecolor=pool.fill, zorder=3)
    _scale(axes, x, whole=topic == "pool_params_count")
    axes.margins(y=0.1)
    axes.set_xlabel(label)
    axes.set_ylabel("best test accuracy, %" if measured.metric == METRICS[0] else "final test accuracy, %")
    _dress(figure, axes, pair, pools, alone, lines=False)
    return figure, f"Accuracy against {label} on {'-'.join(pair)}, {len(pools)} pools"


# Axes, titles, labels


def _scale(axes: Axes, x: np.ndarray, whole: bool) -> None:
    """Logarithmic where values are more than twenty times as large as others; then 0 has a place of its own."""
    positive = x[x > 0]
    zero = len(positive) < len(x)
    if len(positive) and (positive.max() > 20 * positive.min() or (whole and zero)):
        axes.set_xscale(*(("symlog",) if zero else ("log",)), **({"linthresh": 1, "linscale": 0.5} if zero else {}))
        first = 0 if zero else math.floor(math.log10(positive.min()))
        top = max(1, math.ceil(math.log10(positive.max())))
        step = max(1, math.ceil((top - first) / 5))
        powers = [10.0**power for power in range(first, top + 1, step)]
        axes.set_xticks([0.0, *powers] if zero else powers)
        axes.set_xlim(-0.5 if zero else powers[0] / 1.5, powers[-1] * 1.5)
        axes.minorticks_off()
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}" if value < 1e5 else f"{value:.0e}"))
        return
    centre, half = (x.max() + x.min()) / 2, max(np.ptp(x) * 0.58, 0.1 * x.max(), 0.5 if whole else 0.0)
    axes.set_xlim(centre - half, centre + half)  # a tenth at least: else a second of chance looks like a difference
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=whole))
    axes.ticklabel_format(axis="x", useOffset=False)


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained", facecolor="none")
    axes = figure.add_subplot(facecolor="none")
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(RULE)
    axes.tick_params(colors=INK, labelsize=9, color=RULE, width=0.8, length=3)
    axes.xaxis.label.set(color=INK, size=9)
    axes.yaxis.label.set(color=INK, size=9)
    axes.grid(True, color=RULE, lw=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _dress(
    figure: Figure,
    axes: Axes,
    pair: Pair,
    pools: Sequence[Pool],
    alone: bool,
    *,
    lines: bool = False,
    legend: bool = True,
) -> None:
    """Title and legend, which in a page stand once for all of them."""
    if not alone:
        return
    cast("ConstrainedLayoutEngine", figure.get_layout_engine()).set(w_pad=0.1, h_pad=0.1)  # inches
    axes.set_title("-".join(pair), loc="left", fontsize=10, color=INK, parse_math=False)
    if not legend or not pools:
        return
    handles = [
        Line2D([], [], color=p.colour, lw=1.4, dashes=p.dash or (None, None))
        if lines
        else Line2D([], [], color=p.colour, lw=0, marker=p.marker, ms=6, markerfacecolor=p.fill)
        for p in pools
    ]
    longest = max(len(shorten(pool.name)) for pool in pools)
    columns = max(1, min(4, int(72 * WIDTH / (44 + 5 * longest))))  # points, of a line and of a letter
    rows = math.ceil(len(pools) / columns)
    box = figure.legend(
        handles,
        [" "] * len(handles),
        loc="outside lower left",
        ncols=columns,
        fontsize=8,
        frameon=False,
        labelcolor=INK,
    )
    _label(box.get_texts(), [pool.name for pool in pools])
    figure.set_figheight(figure.get_figheight() + 0.18 * rows)


def _label(texts: Sequence[Any], labels: Sequence[str], longest: int = LONGEST) -> None:
    """A label is whatever its owner wrote: no mathematics, no line breaks, not endless."""
    for text, label in zip(texts, labels, strict=True):
        text.set_parse_math(False)
        text.set_text(shorten(label, longest))


def shorten(label: str, longest: int = LONGEST) -> str:
    """On one line, and its end cut off."""
    line = "".join(c if c.isprintable() else " " for c in label).strip() or "?"
    return line if len(line) <= longest else line[: longest - 1] + "…"


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """A label may have letters that matplotlib's font lacks; the reader's browser has them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


# As SVG and as files


def to_svg(picture: Picture, prefix: str) -> str:
    """An <svg> to stand in a page, with the page's colours and letters, and ids that begin with `prefix`."""
    sink = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix}), _quietly():
        picture.figure.savefig(sink, format="svg", transparent=True, metadata=dict.fromkeys(_METADATA))
    text = sink.getvalue().decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<[^>]*>", lambda tag: _page_tag(tag[0], prefix), text)
    text = re.sub(r"\n\s*", "\n", text)
    return text.strip()


_METADATA = ("Creator", "Date", "Format", "Type")
_VARIABLES = {
    INK: "currentColor",
    RULE: "var(--rule)",
    PAPER: "var(--paper)",
    **{colour: f"var(--c{place})" for place, colour in enumerate(COLOURS)},
}


def _page_tag(tag: str, prefix: str) -> str:
    """A label's > is escaped, so that what is between < and > is matplotlib's own."""
    if tag.startswith("<svg"):
        box = cast("re.Match[str]", re.search(r'viewBox="[^"]*"', tag))[0]
        return f'<svg {box} aria-hidden="true" focusable="false">'
    tag = re.sub(r'\bid="', f'id="{prefix}-', tag)
    tag = re.sub(r'(href="|url\()#', rf"\1#{prefix}-", tag)
    tag = re.sub(r'\bd="[^"]*"', lambda d: re.sub(r"(\.\d\d)\d+", r"\1", d[0]), tag)
    tag = re.sub(r"font: ((?:\w+ )*?)([\d.]+)px [^;\"]*", r"font-size: \2px", tag)
    return re.sub(r"#[0-9a-f]{6}\b", lambda colour: _VARIABLES.get(colour[0], colour[0]), tag)


def save(run: Frames, output: Path, form: str, **arguments: Any) -> str:
    """Every picture as a file of the folder `output`; what was written. `arguments` are those of `measure`.

    Raises:
        RequestError: the folder cannot be written, or as `measure`.
    """
    written = 0
    try:
        output.mkdir(parents=True, exist_ok=True)
        for picture in pictures(measure(run, **arguments), alone=True):
            path = output / f"{picture.file_name}.{form}"
            with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "poolsweep"}), _quietly():
                options: dict[str, Any] = {"metadata": {"Date": None}} if form == "svg" else {"dpi": 200}
                picture.figure.savefig(path, format=form, facecolor="white", **options)
            written += 1
    except OSError as error:
        raise RequestError.of(f"the pictures cannot be written: {error}; give another --output") from None
    return f"{written} {'picture' if written == 1 else 'pictures'} in {output}"
