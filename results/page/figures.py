"""The pictures of a run folder: learning curves, paired differences, accuracy against cost.

Each is small and for one architecture on one dataset, so that a page can set them side by side and a phone below each
other. A pool looks the same in all of them. Whoever imports this pays for matplotlib.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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

from results.frames import Frames, write_output
from results.store import schema
from results.table import leaderboard, render
from results.table.trials import METRICS, MISSING, NEEDS, Selection, select
from search_spaces.equivalence import Equivalence
from search_spaces.grid import BASELINE, Grid

# Okabe and Ito's colours, which the colour-blind tell apart, without the yellow and with the light ones darkened to
# 3:1 on white. In a page each of them, and ink, rule and paper, is a CSS variable: the dark theme has others.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b8568f", "#c48200", "#3b97cf")
DASHES = ((), (5, 2), (1.2, 1.6), (6, 2, 1.2, 2))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK, RULE, PAPER = "#010203", "#d5d6d7", "#fefdfc"

WIDTH = 4.2  # inches
BANDS = 8  # pools: the bands of more than these hide each other
LONGEST = 26  # characters of a label in a picture
BROKEN = (schema.DIVERGED, schema.COLLAPSED, schema.FAILED)

_TICKS = {"color": RULE, "labelcolor": INK, "labelsize": 9, "major.size": 3}
STYLE: dict[Any, Any] = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": RULE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.4,
    "text.parse_math": False,  # a label is whatever its owner wrote
    **{f"{axis}tick.{name}": value for axis in "xy" for name, value in _TICKS.items()},
}


@contextlib.contextmanager
def styled(more: Mapping[Any, Any] | None = None) -> Iterator[None]:
    """Let matplotlib draw, and save, in this style, with more of its parameters."""
    with mpl.rc_context({**STYLE, **(more or {})}), warnings.catch_warnings():
        # A label may have letters that matplotlib's font lacks; the reader's browser has them.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


# What they are made of


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
    def line(self) -> dict[str, Any]:
        return {"color": self.colour, "dashes": self.dash or (None, None)}

    @property
    def mark(self) -> dict[str, Any]:
        """The marker's arguments to `plot`: a baseline's is hollow."""
        fill = PAPER if self.role == BASELINE else self.colour
        return {"color": self.colour, "marker": MARKERS[self.place % len(MARKERS)], "markerfacecolor": fill}


Pair = tuple[str, str]


@dataclass(frozen=True)
class Measured:
    """What the pictures and the page are made of: the frames of one run folder, each with the table's names as `name`.

    Attributes:
        grids, same: what was asked for, and which pools the gate found to be one function.
        pools: the rows of `table`, in order.
        best: {pair: its best baseline}.
        frame: the tidy table.
        trials: one row for each trial on record or asked for: seed, status, and all columns of a record.
        epochs: one row for each epoch, with the status of its trial.
    """

    metric: str
    grids: Sequence[Grid]
    same: Sequence[Equivalence]
    pools: Sequence[Pool]
    table: render.Wide
    best: Mapping[Pair, str]
    frame: pd.DataFrame
    trials: pd.DataFrame
    epochs: pd.DataFrame

    def of(self, frame: pd.DataFrame, pair: Pair) -> pd.DataFrame:
        return frame[(frame["arch"] == pair[0]) & (frame["dataset"] == pair[1])]

    def completed(self, pair: Pair) -> pd.DataFrame:
        trials = self.of(self.trials, pair)
        return trials[trials["status"] == schema.COMPLETED]

    def among(self, names: pd.Series | pd.Index) -> list[Pool]:
        """Return the pools of these names, in the table's order."""
        there = set(names)
        return [pool for pool in self.pools if pool.name in there]


def measure(run: Frames, **selection: Any) -> Measured:
    """Read the run folder; `selection` is that of `Frames.leaderboard`.

    Raises:
        RequestError: as `Frames.leaderboard`.
    """
    chosen = Selection(**selection)
    recorded, grids, same = run.folder.trials.read().to_pandas(), run.grids(), run.folder.equivalences.read()
    frame = leaderboard.cells(recorded[NEEDS], grids, chosen, same)
    name_of = leaderboard.names(frame)

    def with_names(table: pd.DataFrame) -> pd.DataFrame:
        names = [name_of(*key) for key in zip(table["pool"], table["revision"], strict=True)]
        return table.assign(name=pd.Series(names, index=table.index, dtype=object))

    table = render.Wide(frame, chosen.metric)
    trials = with_names(select(recorded[NEEDS], grids, chosen))
    trials = trials[trials["name"].isin([row.name for row in table.rows])]
    rest = [column for column in recorded.columns if column == "trial_id" or column not in trials.columns]
    epochs = run.folder.epochs.read(["trial_id", "epoch", "test_acc", "epoch_s"]).to_pandas()
    return Measured(
        metric=chosen.metric,
        grids=grids,
        same=same,
        pools=[Pool(row.name, row.role, place) for place, row in enumerate(table.rows)],
        table=table,
        best=leaderboard.best_baselines(frame),
        frame=with_names(frame),
        trials=trials.merge(recorded[rest], on="trial_id", how="left"),
        epochs=epochs.merge(trials[["trial_id", "name", "arch", "dataset", "seed", "status"]], on="trial_id"),
    )


# The pictures


@dataclass(frozen=True)
class Picture:
    """A figure without title and legend, which a page has once for all of them, and what belongs there.

    Attributes:
        kind: `curves`, `differences` or `cost`.
        what: it shows, for those who cannot see it.
        topic: what is measured, for a picture of costs.
    """

    kind: str
    pair: Pair
    pools: Sequence[Pool]
    what: str
    figure: Figure
    topic: str = ""

    @property
    def title(self) -> str:
        return "-".join(self.pair)

    @property
    def text(self) -> str:
        return f"{self.what} on {self.title}, {len(self.pools)} pools"

    @property
    def file_name(self) -> str:
        return re.sub(r"[^A-Za-z0-9_.-]+", "_", "-".join(filter(None, [self.kind, *self.pair, self.topic])))


def pictures(measured: Measured) -> Iterator[Picture]:
    """Yield every picture that there is something for."""
    for draw in (curves, differences, *(partial(cost, topic=topic) for topic in COSTS)):
        for pair in measured.table.pairs:
            if picture := draw(measured, pair):
                yield picture


@styled()
def curves(measured: Measured, pair: Pair) -> Picture | None:
    """Draw mean test accuracy over epochs by pool, and the range over its seeds as a band.

    Of the trials that have completed; where there is none, of those under way, as far as all of them have come. One
    that diverged, collapsed or failed is a thin line of its own that ends in a cross: it would bend a mean.
    """
    epochs = measured.of(measured.epochs, pair)
    epochs = epochs[np.isfinite(epochs["test_acc"])].sort_values("epoch")
    if epochs.empty:
        return None
    figure, axes = _figure(2.9)
    pools, last = measured.among(epochs["name"]), int(epochs["epoch"].max())
    banded = len(pools) <= BANDS
    lows, ends = [], []
    for pool in pools:
        mine = epochs[epochs["name"] == pool.name]
        for _, one in mine[mine["status"].isin(BROKEN)].groupby("trial_id"):
            axes.plot(one["epoch"], one["test_acc"], color=pool.colour, lw=0.6, alpha=0.7)
            ends.append((one["epoch"].iloc[-1], one["test_acc"].iloc[-1]))
        completed = mine[mine["status"] == schema.COMPLETED]
        good = completed if len(completed) else mine[mine["status"] == MISSING]
        by_epoch = good.groupby("epoch")["test_acc"].agg(["mean", "min", "max", "count"])
        by_epoch = by_epoch[by_epoch["count"] == good["trial_id"].nunique()]
        if by_epoch.empty:
            continue
        style = pool.line | pool.mark if len(by_epoch) == 1 else pool.line
        axes.plot(by_epoch.index, by_epoch["mean"], **style)
        if banded:
            axes.fill_between(by_epoch.index, by_epoch["min"], by_epoch["max"], color=pool.colour, alpha=0.15, lw=0)
        settled = by_epoch[by_epoch.index >= last / 4]
        lows.append((by_epoch if settled.empty else settled)["min" if banded else "mean"].min())
    low, high = min(lows, default=0.0), epochs["test_acc"].max()
    room = max((high - low) * 0.06, 0.5)
    axes.set_ylim(max(0, low - room), min(100.5, high + room))  # the climb of the first quarter would hide the rest
    axes.set_xlim(*((1, last) if last > 1 else (0, 2)))
    bottom = axes.get_ylim()[0]  # what has collapsed is below: its end stands on the axis
    for x, y in ends:
        axes.plot(x, max(y, bottom), "x", color=INK, ms=4.5, mew=1.3, zorder=5, clip_on=False)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set(xlabel="epoch", ylabel="test accuracy, %")
    return Picture("curves", pair, pools, f"Test accuracy over {last} epochs", figure)


@styled()
def differences(measured: Measured, pair: Pair) -> Picture | None:
    """Draw a forest plot: each pool's mean paired difference to the best baseline, its 95 % t interval, each seed."""
    best, done, rows = measured.best.get(pair, ""), measured.completed(pair), measured.of(measured.frame, pair)
    rows = rows[(rows["baseline"] == best) & rows["diff"].notna()].drop_duplicates("name").set_index("name")
    pools = measured.among(rows.index)
    if not pools:
        return None
    rows = rows.loc[[pool.name for pool in pools]]
    reference = done[done["pool"] == best].drop_duplicates("seed").set_index("seed")[measured.metric]
    seeds = [
        done[done["name"] == name].set_index("seed")[measured.metric].sub(reference).dropna() for name in rows.index
    ]
    points = np.concatenate([rows["diff"], *seeds, [0.0]]).astype(float)
    # Two seeds have intervals of twelve standard errors: those would leave nothing to see of the others.
    reach = max(np.ptp(points), 0.2)
    exact = rows[["diff_lo", "diff_hi"]].to_numpy(float)  # NaN of a single seed, which draws nothing
    ends = exact.clip(points.min() - reach, points.max() + reach)
    low, high = np.nanmin([points.min(), *ends[:, 0]]), np.nanmax([points.max(), *ends[:, 1]])

    height = max(2, len(pools))
    figure, axes = _figure(0.72 + 0.27 * height)
    for y, pool in enumerate(pools):
        axes.plot(ends[y], [y, y], color=pool.colour, lw=1.8, solid_capstyle="butt")
        for end, is_cut, arrow in zip(ends[y], ends[y] != exact[y], "<>", strict=True):
            axes.plot(end, y, arrow if is_cut else "|", color=pool.colour, ms=5 if is_cut else 7)
        axes.plot(seeds[y], np.full(len(seeds[y]), y + 0.26), ".", color=pool.colour, ms=4.5, alpha=0.8, mew=0)
        axes.plot(rows["diff"].iloc[y], y, ms=5.5, zorder=4, **pool.mark)
    axes.axvline(0, color=INK, lw=0.9, zorder=1)
    room = 0.05 * (high - low or 1)
    axes.set(xlim=(low - room, high + room), ylim=(height - 0.45, -0.6))
    axes.set_yticks(range(len(pools)), [shorten(pool.name) for pool in pools])
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+.3g}".replace("-", "−") if value else "0"))
    axes.set_xlabel(f"points of accuracy against {shorten(best)}")
    return Picture("differences", pair, pools, f"Differences to {best} with 95 % intervals", figure)


COSTS = {  # column of the trials: what the axis is called
    "pool_params_count": "parameters of the pool",
    "pool_times_gap": "time of the pool, average pooling's = 1",
    "train_s": "training time of a trial",
}
UNITS = {"h": 3600, "min": 60, "s": 1}


@styled()
def cost(measured: Measured, pair: Pair, topic: str) -> Picture | None:
    """Draw mean accuracy, with its standard deviation, against what the pool costs."""
    by_pool = measured.completed(pair).groupby("name")
    cells = by_pool[measured.metric].agg(["mean", "std"]).assign(x=by_pool[topic].mean()).dropna(subset="x")
    pools = measured.among(cells.index)
    if not pools:
        return None
    label = COSTS[topic]
    if topic == "train_s":
        unit = next((unit for unit, seconds in UNITS.items() if cells["x"].max() >= 3 * seconds), "s")
        cells["x"] /= UNITS[unit]
        label += f", {unit}"
    figure, axes = _figure(2.6)
    for pool in pools:
        cell: Any = cells.loc[pool.name]
        axes.errorbar(cell["x"], cell["mean"], yerr=cell["std"], elinewidth=1.1, **pool.mark)
    _scale(axes, cells["x"].to_numpy(float), whole=topic == "pool_params_count")
    axes.margins(y=0.1)
    which = "best" if measured.metric == METRICS[0] else "final"
    axes.set(xlabel=label, ylabel=f"{which} test accuracy, %")
    return Picture("cost", pair, pools, f"Accuracy against {label}", figure, topic)


def _scale(axes: Axes, x: np.ndarray, whole: bool) -> None:
    """Logarithmic where values are more than twenty times as large as others; then 0 has a place of its own."""
    positive = x[x > 0]
    zero = len(positive) < len(x)
    if len(positive) and (positive.max() > 20 * positive.min() or (whole and zero)):
        first = 0 if zero else math.floor(math.log10(positive.min()))
        top = max(1, math.ceil(math.log10(positive.max())))
        powers = [10.0**power for power in range(first, top + 1, max(1, math.ceil((top - first) / 5)))]
        if zero:
            axes.set_xscale("symlog", linthresh=1, linscale=0.5)
        else:
            axes.set_xscale("log")
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
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def shorten(label: str, longest: int = LONGEST) -> str:
    """Return a label on one line, with its middle left out if it is long: parameters stand at its end."""
    line = "".join(c if c.isprintable() else " " for c in label).strip() or "?"
    return line if len(line) <= longest else f"{line[: longest // 2]}…{line[1 - longest // 2 :]}"


# In a page, and as files


def to_svg(picture: Picture, salt: str) -> str:
    """Return an <svg> to stand in a page, with the page's colours and letters, and ids that `salt` makes its own."""
    sink = io.StringIO()
    with styled({"svg.fonttype": "none", "svg.hashsalt": salt}):
        picture.figure.savefig(sink, format="svg")
    text = sink.getvalue()
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r"<[^>]*>", lambda tag: _page_tag(tag[0]), text)  # of a label > is escaped: every <> is matplotlib's
    return re.sub(r"\n\s*", "\n", text).strip()


_VARIABLES = {
    INK: "currentColor",
    RULE: "var(--rule)",
    PAPER: "var(--paper)",
    **{colour: f"var(--c{place})" for place, colour in enumerate(COLOURS)},
}


def _page_tag(tag: str) -> str:
    if tag.startswith("<svg"):
        box = cast("re.Match[str]", re.search(r'viewBox="[^"]*"', tag))[0]
        return f'<svg {box} aria-hidden="true" focusable="false">'
    tag = re.sub(r'<g id="[^"]*"', "<g", tag)  # axes_1 and the like, which nothing refers to and every picture has
    tag = re.sub(r'\bd="[^"]*"', lambda d: re.sub(r"(\.\d\d)\d+", r"\1", d[0]), tag)
    tag = re.sub(r"font: ((?:\w+ )*?)([\d.]+)px [^;\"]*", r"font-size: \2px", tag)
    return re.sub(r"#[0-9a-f]{6}\b", lambda colour: _VARIABLES.get(colour[0], colour[0]), tag)


def save(run: Frames, output: Path, form: str, **selection: Any) -> str:
    """Write every picture, with title and legend, into the folder `output`; return how many they are.

    Raises:
        RequestError: the folder cannot be written, or as `measure`.
    """
    written = 0
    options: dict[str, Any] = {"metadata": {"Date": None}} if form == "svg" else {"dpi": 200}
    for picture in pictures(measure(run, **selection)):
        sink = io.BytesIO()
        with styled({"svg.hashsalt": "poolsweep"}):
            _dress(picture)
            picture.figure.savefig(sink, format=form, facecolor="white", **options)
        write_output(output / f"{picture.file_name}.{form}", sink.getvalue())
        written += 1
    return f"{written} {'picture' if written == 1 else 'pictures'} in {output}"


def _dress(picture: Picture) -> None:
    """Add what a page says once for all of its pictures."""
    figure = picture.figure
    cast("ConstrainedLayoutEngine", figure.get_layout_engine()).set(w_pad=0.1, h_pad=0.1)  # inches
    figure.axes[0].set_title(picture.title)
    if picture.kind == "differences":
        return
    labels = [shorten(pool.name) for pool in picture.pools]
    is_line = picture.kind == "curves"
    handles = [Line2D([], [], **pool.line) if is_line else Line2D([], [], lw=0, **pool.mark) for pool in picture.pools]
    columns = max(1, min(4, int(72 * WIDTH / (44 + 5 * max(map(len, labels))))))  # points, of a line and of a letter
    box = figure.legend(handles, [" "] * len(handles), loc="outside lower left", ncols=columns)
    for text, label in zip(box.get_texts(), labels, strict=True):
        text.set_text(label)  # to older versions of matplotlib a label that begins with _ is none
    figure.set_figheight(figure.get_figheight() + 0.18 * math.ceil(len(labels) / columns))
