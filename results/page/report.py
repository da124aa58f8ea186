"""A run folder as one HTML page: it fetches nothing, so that it can be mailed, and has no script.

The table is a `results.table.render.Wide`, the pictures are `results.page.figures`. Every text comes from a YAML
file or a candidate and is escaped by the template.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import pandas as pd
from markupsafe import Markup

from results.frames import Frames
from results.page import figures
from results.page.figures import Measured, Pair, Pool
from results.store import schema
from results.store.folder import RunFolder
from results.table.published import BENCHMARK
from results.table.render import WITHHELD
from results.table.trials import MISSING
from search_spaces.errors import RequestError
from search_spaces.text import duration, first_line, visible

UNDER_WAY, WAITING = "under way", "waiting"
ORDER = (
    schema.FAILED,
    schema.DIVERGED,
    schema.COLLAPSED,
    schema.INVALID,
    UNDER_WAY,
    WAITING,
    schema.COMPLETED,
    WITHHELD,
)
ERROR = 240  # characters of an error; the log has all of it


def write(run: Frames, output: Path | None = None, **arguments: Any) -> str:
    """Write the page to `output`, or into the run folder; return where it is. `arguments` are those of `measure`.

    Raises:
        RequestError: as `Frames.leaderboard`, or the page cannot be written.
    """
    text = page(run, output.resolve().parent if output else None, **arguments)
    try:
        if output is None:
            run.folder.report.write(text.encode())
            return str(run.folder.report)
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text, encoding="utf-8")
        return str(output)
    except OSError as error:
        raise RequestError.of(f"the report cannot be written: {error}; give another --output") from None


def page(run: Frames, beside: Path | None = None, **arguments: Any) -> str:
    """Return the page, with links to logs that hold in the folder `beside`, the run folder unless given."""
    measured = figures.measure(run, **arguments)
    trials = _trials(run, measured, beside)
    grid = run.folder.space.read()
    pictures: dict[str, list[dict[str, Any]]] = {"curves": [], "differences": [], "cost": []}
    for number, picture in enumerate(figures.pictures(measured)):
        drawn = Markup(figures.to_svg(picture, f"f{number}"))  # noqa: S704 - its texts are escaped by matplotlib
        pictures[picture.kind].append({"title": "-".join(picture.pair), "text": picture.text, "svg": drawn})
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("results.page", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else visible(str(value)),
    )
    counts = {status: sum(one.status == status for one in trials) for status in ORDER}
    return environment.get_template("report.html.jinja").render(
        title=grid.name if grid else run.folder.name,
        now=datetime.now(UTC),
        facts=_facts(measured, counts),
        counts={status: count for status, count in counts.items() if count},
        pairs=[("-".join(pair), _is_hidden(measured, pair)) for pair in measured.table.pairs],
        groups=[(f"{role}s", [*rows]) for role, rows in groupby(measured.table.rows, lambda row: row.role)],
        footer=[*measured.table.footer, *run.notes()],
        keys=[_Key.of(pool) for pool in measured.pools],
        palette=figures.COLOURS,
        banded=len(measured.pools) <= figures.BANDS,
        pictures=pictures,
        trials=trials,
        provenance=_provenance(run.folder.name, measured.recorded),
    )


# Around the table


def _is_hidden(measured: Measured, pair: Pair) -> bool:
    return bool(measured.of(measured.frame, pair)["hidden"].any())


def _facts(measured: Measured, counts: dict[str, int]) -> list[tuple[str, str]]:
    asked = sum(counts.values()) - counts[WITHHELD]
    spent = float(measured.trials["train_s"].sum())
    return [
        ("trials completed", f"{counts[schema.COMPLETED]:,} of {asked:,}"),
        ("pools", f"{len(measured.pools):,}"),
        ("architecture-dataset pairs", f"{len(measured.table.pairs):,}"),
        ("seeds", f"{measured.trials['seed'].nunique():,}"),
        ("training time", duration(spent)),
    ]


@dataclass(frozen=True, slots=True)
class _Key:
    """The line and the marker of a pool in the legend."""

    name: str
    role: str
    colour: int
    dash: str
    hollow: bool
    marker: str  # an SVG path around (0, 0)

    @staticmethod
    def of(pool: Pool) -> _Key:
        colour = figures.COLOURS.index(pool.colour)
        dash = " ".join(f"{1.4 * length:g}" for length in pool.dash)
        return _Key(pool.name, pool.role, colour, dash, pool.fill == figures.PAPER, _MARKERS[pool.marker])


_MARKERS = {
    "o": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "s": "M-3.6-3.6h7.2v7.2h-7.2z",
    "^": "M0-4.2L4.2 3.8H-4.2z",
    "D": "M0-4.8L4.8 0L0 4.8L-4.8 0z",
    "v": "M0 4.2L4.2-3.8H-4.2z",
    "P": "M-1.5-4.2h3v2.7h2.7v3h-2.7v2.7h-3v-2.7h-2.7v-3h2.7z",
    "X": "M-4-2L-2-4L0-2L2-4L4-2L2 0L4 2L2 4L0 2L-2 4L-4 2L-2 0z",
}


@dataclass(frozen=True, slots=True)
class _Trial:
    """A line of the list of trials; a field is empty where there is nothing to say."""

    id: str
    pool: str
    pair: str
    seed: int
    status: str
    best: str
    best_epoch: str
    epochs: str
    seconds: str
    attempt: str
    host: str
    error: str
    log: str


def _trials(run: Frames, measured: Measured, beside: Path | None) -> list[_Trial]:
    """Return every trial on record or asked for, first those that somebody should look at."""
    reached = measured.epochs.groupby("trial_id").agg(
        epochs=("epoch", "max"), s=("epoch_s", "sum"), best=("test_acc", "max")
    )
    live = reached.to_dict("index")
    places = {pool.name: pool.place for pool in measured.pools}
    columns = {pair: place for place, pair in enumerate(measured.table.pairs)}
    logs = run.folder.logs()
    found = []
    for row in measured.trials.to_dict("records"):
        status = row["status"]
        so_far = live.get(row["trial_id"], {})
        if status == MISSING:
            status = UNDER_WAY if so_far else WAITING
            cell = measured.table.rows[places[row["name"]]].cells[columns[row["arch"], row["dataset"]]]
            status = WITHHELD if cell.gaps == WITHHELD and not so_far else status
        place = (ORDER.index(status), columns[row["arch"], row["dataset"]], places[row["name"]], row["seed"])
        line = _Trial(
            id=row["trial_id"],
            pool=row["name"],
            pair=f"{row['arch']}-{row['dataset']}",
            seed=row["seed"],
            status=status,
            best=_number(row["best_test_acc"], so_far.get("best"), ".2f"),
            best_epoch=_number(row["best_epoch"], None, ",.0f"),
            epochs=_number(row["epochs"], so_far.get("epochs"), ",.0f"),
            seconds=_number(row["train_s"], so_far.get("s"), ",.0f"),
            attempt=_number(row["attempt"], None, ".0f"),
            host=_text(row["host"]),
            error=figures.shorten(first_line(_text(row["error"])), ERROR),
            log=_link(run.folder, row["trial_id"], beside) if row["trial_id"] in logs else "",
        )
        found.append((place, line))
    return [line for _, line in sorted(found, key=lambda item: item[0])]


def _link(folder: RunFolder, trial_id: str, beside: Path | None) -> str:
    """Return the link to a trial's log; from a page elsewhere to an object store it is the log's URI, to copy."""
    log = f"logs/{trial_id}.log"
    if beside is None:
        return quote(log)
    if not folder.on_disk:
        return quote(folder.trial(trial_id).log_place(), safe="/:?=&@")
    return quote(os.path.relpath(folder.path / log, beside).replace(os.sep, "/"))


def _number(value: Any, otherwise: Any, form: str) -> str:
    """Spell a value as it is on record, or as the epochs so far say; nothing if neither knows."""
    known = next((one for one in (value, otherwise) if one is not None and not pd.isna(one)), None)
    return "" if known is None else format(float(known), form)


def _text(value: Any) -> str:
    return "" if value is None or pd.isna(value) else str(value)


def _provenance(name: str, trials: pd.DataFrame) -> list[tuple[str, list[str]]]:
    """Return [(what, its values)] under which everything here was measured."""
    started, finished = trials["started_at"].min(), trials["finished_at"].max()
    span = (
        [f"{started:%Y-%m-%d %H:%M} to {finished:%Y-%m-%d %H:%M} UTC"]
        if pd.notna(started) and pd.notna(finished)
        else []
    )
    entries = [
        ("run folder", [name]),
        ("recipe", [_spell_json(text) for text in _distinct(trials["recipe"])]),
        ("trainer", [f"made after {BENCHMARK}"]),
        ("protocol", _distinct(trials["protocol"])),
        ("versions", [_spell_json(text) for text in _distinct(trials["versions"])]),
        ("devices", _counted(trials["device"])),
        ("torch.compile", [{"True": "yes", "False": "no"}.get(one, one) for one in _distinct(trials["compiled"])]),
        ("hosts", _counted(trials["host"])),
        ("git commits", _distinct(trials["git_commit"])),
        ("when", span),
        ("schema version", _distinct(trials["schema_version"])),
    ]
    return [(what, values or ["not on record"]) for what, values in entries]


def _spell_json(text: str) -> str:
    try:
        return ", ".join(f"{key} {value}" for key, value in json.loads(text).items() if value is not None)
    except (ValueError, AttributeError):
        return text


def _distinct(column: Iterable[Any]) -> list[str]:
    return list(dict.fromkeys(_whole(value) for value in column if value is not None and not pd.isna(value)))


def _whole(value: Any) -> str:
    """Spell a value; an integer column with nulls in it comes as floats."""
    return f"{value:.0f}" if isinstance(value, float) else str(value)


def _counted(column: pd.Series) -> Sequence[str]:
    counts = column.dropna().value_counts()
    return [f"{value} ({count} {'trial' if count == 1 else 'trials'})" for value, count in counts.items()]
