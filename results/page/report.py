"""A run folder as one HTML page: it fetches nothing, so that it can be mailed, and has no script.

The table is a `results.table.render.Wide`, the pictures are `results.page.figures`. Every text comes from a YAML
file or a candidate and is escaped by the template.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import pandas as pd
from markupsafe import Markup

from results.frames import Frames, write_output
from results.page import figures
from results.page.figures import Measured
from results.store import schema
from results.store.folder import RunFolder
from results.table.published import BENCHMARK
from results.table.render import WITHHELD
from results.table.trials import MISSING
from search_spaces.text import duration, first_line, visible

UNDER_WAY, WAITING = "under way", "waiting"
ORDER = (  # of the list of trials: first those that somebody should look at
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
MARKERS = {  # of the pictures, as SVG paths around (0, 0)
    "o": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "s": "M-3.6-3.6h7.2v7.2h-7.2z",
    "^": "M0-4.2L4.2 3.8H-4.2z",
    "D": "M0-4.8L4.8 0L0 4.8L-4.8 0z",
    "v": "M0 4.2L4.2-3.8H-4.2z",
    "P": "M-1.5-4.2h3v2.7h2.7v3h-2.7v2.7h-3v-2.7h-2.7v-3h2.7z",
    "X": "M-4-2L-2-4L0-2L2-4L4-2L2 0L4 2L2 4L0 2L-2 4L-4 2L-2 0z",
}


def write(run: Frames, output: Path | None = None, **selection: Any) -> str:
    """Write the page to `output`, or into the run folder; return where it is. `selection` is that of `measure`.

    Raises:
        RequestError: as `Frames.leaderboard`, or the page cannot be written.
    """
    text = page(run, output.resolve().parent if output else None, **selection)
    return write_output(output or run.folder.report, text.encode())


def page(run: Frames, beside: Path | None = None, **selection: Any) -> str:
    """Return the page, with links to logs that hold in the folder `beside`, the run folder unless given."""
    measured = figures.measure(run, **selection)
    trials = _trials(run.folder, measured, beside)
    counts = trials["status"].value_counts(sort=False)
    hidden = measured.frame.groupby(["arch", "dataset"])["hidden"].any()
    pictures: dict[str, list[dict[str, Any]]] = {"curves": [], "differences": [], "cost": []}
    for number, picture in enumerate(figures.pictures(measured)):
        drawn = Markup(figures.to_svg(picture, f"f{number}"))  # noqa: S704 - its texts are escaped by matplotlib
        pictures[picture.kind].append({"title": picture.title, "text": picture.text, "svg": drawn})
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("results.page", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else visible(str(value)),
    )
    environment.filters["number"] = lambda value, form: "" if pd.isna(value) else format(value, form)
    return environment.get_template("report.html.jinja").render(
        title=measured.grids[0].name if measured.grids else run.folder.name,
        now=datetime.now(UTC),
        facts={
            "trials completed": f"{counts[schema.COMPLETED]:,} of {len(trials) - counts[WITHHELD]:,}",
            "pools": f"{len(measured.pools):,}",
            "architecture-dataset pairs": f"{len(measured.table.pairs):,}",
            "seeds": f"{trials['seed'].nunique():,}",
            "training time": duration(measured.trials["train_s"].sum()),
        },
        counts={status: count for status, count in counts.items() if count},
        pairs=[("-".join(pair), hidden[pair]) for pair in measured.table.pairs],
        groups=[(f"{role}s", [*rows]) for role, rows in groupby(measured.table.rows, lambda row: row.role)],
        footer=[*measured.table.footer, *run.notes(measured.same)],
        pools=measured.pools,
        markers=MARKERS,
        palette=figures.COLOURS,
        banded=len(measured.pools) <= figures.BANDS,
        pictures=pictures,
        trials=trials.to_dict("records"),
        provenance=_provenance(run.folder.name, measured.trials),
    )


def _trials(folder: RunFolder, measured: Measured, beside: Path | None) -> pd.DataFrame:
    """Return every trial on record or asked for, in `ORDER`; of those under way, what their epochs say so far."""
    reached = measured.epochs.groupby("trial_id").agg(
        epochs=("epoch", "max"), train_s=("epoch_s", "sum"), best_test_acc=("test_acc", "max")
    )
    trials = measured.trials.set_index("trial_id", drop=False)
    withheld = {
        (row.name, *pair)
        for row in measured.table.rows
        for pair, cell in zip(measured.table.pairs, row.cells, strict=True)
        if cell.gaps == WITHHELD
    }
    cell = pd.Series(list(zip(trials["name"], trials["arch"], trials["dataset"], strict=True)), index=trials.index)
    missing, begun = trials["status"] == MISSING, trials["trial_id"].isin(reached.index)
    status = trials["status"].mask(missing, WAITING).mask(missing & cell.isin(withheld), WITHHELD)
    logs = folder.logs()
    trials = trials.fillna(reached).assign(
        status=pd.Categorical(status.mask(missing & begun, UNDER_WAY), ORDER),
        pair=pd.Categorical(trials["arch"] + "-" + trials["dataset"], [*measured.table.head[1:]]),
        name=pd.Categorical(trials["name"], [pool.name for pool in measured.pools]),
        host=trials["host"].fillna(""),
        error=[(line := first_line(one)) and figures.shorten(line, ERROR) for one in trials["error"].fillna("")],
        log=[_link(folder, one, beside) if one in logs else "" for one in trials["trial_id"]],
    )
    return trials.sort_values(["status", "pair", "name", "seed"])


def _link(folder: RunFolder, trial_id: str, beside: Path | None) -> str:
    """Return the link to a trial's log; from a page elsewhere to an object store it is the log's URI, to copy."""
    log = f"logs/{trial_id}.log"
    if beside is None:
        return quote(log)
    if not folder.on_disk:
        return quote(folder.trial(trial_id).log_place(), safe="/:?=&@")
    return quote(os.path.relpath(folder.path / log, beside).replace(os.sep, "/"))


def _provenance(name: str, trials: pd.DataFrame) -> dict[str, list[str]]:
    """Return {what: its values} under which everything here was measured."""
    trials = trials[trials["status"] != MISSING].convert_dtypes()  # whole numbers beside nulls are floats

    def distinct(column: str) -> list[str]:
        return [str(value) for value in trials[column].dropna().unique()]

    def counted(column: str) -> list[str]:
        counts = trials[column].value_counts()
        return [f"{value} ({count} {'trial' if count == 1 else 'trials'})" for value, count in counts.items()]

    entries = {
        "run folder": [name],
        "recipe": [_spell_json(text) for text in distinct("recipe")],
        "trainer": [f"made after {BENCHMARK}"],
        "protocol": distinct("protocol"),
        "versions": [_spell_json(text) for text in distinct("versions")],
        "devices": counted("device"),
        "torch.compile": [{"True": "yes", "False": "no"}[one] for one in distinct("compiled")],
        "kernels": distinct("kernels"),
        "hosts": counted("host"),
        "git commits": distinct("git_commit"),
        "when": [],
        "schema version": distinct("schema_version"),
    }
    started, finished = trials["started_at"].min(), trials["finished_at"].max()
    if pd.notna(started) and pd.notna(finished):
        entries["when"] = [f"{started:%Y-%m-%d %H:%M} to {finished:%Y-%m-%d %H:%M} UTC"]
    return {what: values or ["not on record"] for what, values in entries.items()}


def _spell_json(text: str) -> str:
    try:
        return ", ".join(f"{key} {value}" for key, value in json.loads(text).items() if value is not None)
    except (ValueError, AttributeError):
        return text
