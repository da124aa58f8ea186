"""Check that the files of a run folder are whole and agree with each other: `python -m results verify RUN`.

unreadable  a file that is cut off or damaged, or has another format
schema      a Parquet file without the columns of `results.store.schema`
misplaced   a file that holds another trial than its name says
twice       a trial that stands in two files and differs
row         a row that no trial can have
id          a row whose contents have another id
epochs      epochs that are not 1 to n, or not as many as the trial's row says, or without a value
summary     a row that does not follow from its epochs
orphan      a file of a trial that has no row, no checkpoint, and no place in space.yaml
leftover    what a killed process left behind and nobody needs
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from results.store import parquet, schema
from results.store.disk import Files
from results.store.folder import FOLDERS, PASSING, RunFolder
from results.store.s3 import StoreError
from results.store.set_aside import RESTORE, Finding
from search_spaces.errors import RequestError, first_line
from search_spaces.grid import ROLES, Grid
from search_spaces.pool import Pool
from search_spaces.recipe import Recipe
from search_spaces.trial import PROTOCOL, Trial

FINAL = ("test_acc", "test_loss", "train_acc", "train_loss")
SUMMARY = ("best_test_acc", "best_epoch", *(f"final_{name}" for name in FINAL), "train_s")

_IDENTITY = ("trial_id", "pool", "pool_name", "pool_params", "arch", "dataset", "seed", "recipe", "protocol")
_NEVER_NULL = (*_IDENTITY, "role", "hidden", "status", "schema_version")
_FOLDERS = (*FOLDERS, "cam")
_UNNEEDED = "nothing needs it: set it aside (--set-aside)"
_Fault = tuple[str, str, str]  # kind of finding, trial id, what is wrong


@dataclass(frozen=True, slots=True)
class Audit:
    """The findings, and how many trials and epochs there are, have begun and not ended, or stand in two files alike."""

    findings: tuple[Finding, ...]
    trials: int
    epochs: int
    unfinished: int
    twice: int

    def __str__(self) -> str:
        counts = {"trials": self.trials, "epochs": self.epochs}
        counts |= {"unfinished": self.unfinished} if self.unfinished else {}
        counts |= {"twice until the next `compact`": self.twice} if self.twice else {}
        found = f"{len(self.findings):,} finding{'s' * (len(self.findings) > 1)}" if self.findings else "all is well"
        return f"{', '.join(f'{count:,} {name}' for name, count in counts.items())}: {found}"


def verify(run: RunFolder, settle_s: float = 1.0) -> Audit:
    """Check a run folder in which a sweep may be at work: only what is still there after `settle_s` counts."""
    first = audit(run)
    if not first.findings:
        return first
    time.sleep(settle_s)
    second = audit(run)
    return dataclasses.replace(second, findings=tuple(one for one in second.findings if one in first.findings))


def audit(run: RunFolder) -> Audit:
    """Check a run folder as it is at this moment.

    Raises:
        OSError, RequestError: it is in a store that does not answer.
    """
    own = [f"{folder}/{name}" for folder in _FOLDERS for name in run.files.names(folder)]
    findings: list[Finding] = []
    grid, pools = _documents(run, findings)
    trials, twice = _read(run.files, "trials", findings)
    epochs, twice_too = _read(run.files, "epochs", findings)
    damaged = {one.name for one in findings}
    rows = trials.to_pylist()
    for row in rows:
        findings += _check_row(row, pools)
    findings += _check_epochs(epochs, trials, damaged)

    status = {row["trial_id"]: row["status"] for row in rows}
    known = {*status, *(parquet.trial_id(name) for name in damaged if name.startswith("trials/"))}
    resumable = {parquet.trial_id(name) for name in own if name.startswith("checkpoints/")}
    going_on = ({planned.trial.id for planned in grid or ()} | resumable) - known
    if not any(parquet.is_merged(name) or name == run.space.name for name in damaged):  # else nobody can say
        what = f"its trial has no row, no checkpoint to go on from, and no place in space.yaml; {_UNNEEDED}"
        needed = {*known, *going_on, parquet.trial_id(parquet.MERGED)}
        orphans = [name for name in own if parquet.trial_id(name) not in needed]
        findings += [Finding("orphan", name, what, (name,)) for name in orphans if name not in damaged]
    leftovers = dict.fromkeys(run.files.leftovers(), "its writer was killed")
    passing = [name for name in own if name.partition("/")[0] in PASSING]
    ended = [name for name in passing if status.get(parquet.trial_id(name)) in schema.TRAINED]
    leftovers |= dict.fromkeys(ended, "its trial has ended")
    findings += [Finding("leftover", name, f"{why}; {_UNNEEDED}", (name,)) for name, why in leftovers.items()]
    unfinished = len(going_on & set(map(parquet.trial_id, own)))
    return Audit(tuple(sorted(findings)), len(rows), len(epochs), unfinished, len(twice | twice_too))


def unreadable(run: RunFolder) -> list[Finding]:
    """List the Parquet files that keep a sweep or a table from being made."""
    names = [name for folder in schema.TABLES for name in parquet.listed(run.files, folder)]
    found = parquet.each(run.files, functools.partial(_open, run.files), names)
    return [one for one in found if isinstance(one, Finding) and one.kind != "misplaced"]


def _documents(run: RunFolder, findings: list[Finding]) -> tuple[Grid | None, Mapping[tuple[str, str, str], Pool]]:
    """Read all JSON and YAML files; return the newest grid, and every pool that was ever asked for, by its key."""
    found: dict[str, Any] = {}
    for name, document in run.documents.items():
        try:
            found[name] = document.read()
        except StoreError:
            raise
        except RequestError as error:
            findings.append(Finding("unreadable", name, f"{first_line(error)}; {RESTORE}", (name,)))
    grid = found.get(run.space.name)
    asked = [entry.pool for entry in grid.entries] if grid else []  # a killed sweep may not have written pools.json
    return grid, {pool.key: pool for pool in [*asked, *found.get(run.pools.name, ())]}


def _read(files: Files, folder: str, findings: list[Finding]) -> tuple[pa.Table, set[str]]:
    """Read each trial or epochs from the first file that has it, with a column `file`; and what several files have."""
    names = parquet.listed(files, folder)
    sound: dict[str, pa.Table] = {}
    for name, found in zip(names, parquet.each(files, functools.partial(_open, files), names), strict=True):
        if isinstance(found, Finding):
            findings.append(found)
        elif found is not None:
            sound[name] = found
    file_of = [pa.repeat(name, len(found)) for name, found in sound.items()]
    table = parquet.as_declared(sound.values(), schema.TABLES[folder])
    table = table.append_column("file", pa.chunked_array(file_of, pa.string()))
    places = table.select(["trial_id", "file"]).to_pandas()
    files_of = places.drop_duplicates()
    first = files_of.drop_duplicates("trial_id").set_index("trial_id")["file"]
    again = files_of[files_of["trial_id"].duplicated()]
    several = table.filter(pa.array(places["trial_id"].isin(again["trial_id"]))).to_pandas()
    is_alike = several.duplicated(schema.TABLES[folder].names, keep=False)
    differing = set(several["trial_id"][~is_alike])
    for trial_id, name in again.itertuples(index=False):
        if trial_id in differing:
            before = first[trial_id]
            what = f"{trial_id} stands in {before} too, and differs; keep one (--set-aside moves the small file)"
            findings.append(Finding("twice", name, what, () if parquet.is_merged(before) else (before,)))
    return table.filter(pa.array(places["file"] == places["trial_id"].map(first))), set(again["trial_id"])


def _open(files: Files, name: str) -> pa.Table | Finding | None:
    """Read a whole file, or return what is wrong with it; None if it was removed meanwhile."""
    try:
        table = parquet.whole(files, name)
    except FileNotFoundError:
        return None
    except StoreError:
        raise
    except (pa.ArrowException, OSError, ValueError, LookupError) as error:
        kind = "schema" if isinstance(error, parquet.WrongColumnsError) else "unreadable"
        return Finding(kind, name, f"{first_line(error)}; {RESTORE}", (name,))
    ids, trial_id = table["trial_id"].to_pylist(), parquet.trial_id(name)
    if parquet.is_merged(name) or ids == [trial_id] or (name.startswith("epochs/") and set(ids) <= {trial_id}):
        return table
    what = f"expected rows of the trial of that name, got {', '.join(map(str, set(ids))) or 'none'}; {RESTORE}"
    return Finding("misplaced", name, what, (name,))


def _check_row(row: Mapping[str, Any], pools: Mapping[tuple[str, str, str], Pool]) -> Iterator[Finding]:
    """Yield what is wrong with a row by itself."""
    trial_id, status, recipe = row["trial_id"], row["status"], _recipe(row["recipe"])
    needed = (*_NEVER_NULL, "epochs", *SUMMARY) if status in schema.TRAINED else _NEVER_NULL
    problems = [f"{column} is null" for column in needed if row[column] is None]
    if not problems and (row["schema_version"] > schema.SCHEMA_VERSION or row["protocol"] > PROTOCOL):
        yield Finding("row", row["file"], f"{trial_id} is of a newer version; verify it with that version")
        return
    for column, allowed in (("status", schema.STATUSES), ("role", ROLES)):
        if row[column] not in allowed:
            problems.append(f"{column}: expected one of {', '.join(allowed)}, got {row[column]!r}")
    if (status in schema.TRAINED) == bool(row["error"]):
        problems.append(f"it is {status}, and its error is {row['error']!r}")
    if recipe is None:
        problems.append(f"recipe: expected the JSON of a recipe, got {row['recipe']!r}")
    if recipe and not problems and status in schema.TRAINED:
        least = 1 if status == schema.DIVERGED else recipe.epochs
        if not least <= row["epochs"] <= recipe.epochs:
            problems.append(f"it is {status} after {row['epochs']} epochs, and its recipe has {recipe.epochs}")
    for what in problems:
        yield Finding.of_trial("row", trial_id, what, row["file"])
    if recipe and not problems:
        pool = pools.get((row["pool_name"], row["pool_params"], row["pool_revision"] or ""))
        if pool is None or pool.code != (row["pool_source_sha"] or ""):
            what = f"the pool of {trial_id} is not in pools.json, or was changed there; restore that from a copy"
            yield Finding("id", row["file"], what)
        elif (got := Trial(pool, row["arch"], row["dataset"], row["seed"], recipe, row["protocol"]).id) != trial_id:
            yield Finding.of_trial("id", trial_id, f"its contents have the id {got}", row["file"])


def _recipe(text: str) -> Recipe | None:
    try:
        return Recipe.of(json.loads(text))
    except (ValueError, TypeError, AttributeError):  # a RequestError is a ValueError
        return None


def _check_epochs(epochs: pa.Table, trials: pa.Table, damaged: set[str]) -> Iterator[Finding]:
    """Yield what is wrong with epochs, and with rows of trained trials that do not follow from them."""
    by_epoch, by_trial = epochs.to_pandas(), trials.to_pandas().drop_duplicates("trial_id").set_index("trial_id")
    needed = [name for name in epochs.column_names if name not in schema.ADDED["epochs"]]
    by_epoch["has_null"] = np.logical_or.reduce([epochs[name].is_null().to_numpy() for name in needed])
    trained = by_trial[by_trial["status"].isin(schema.TRAINED)]
    faults = [*_wrong_epochs(by_epoch)]
    sane = by_epoch[~by_epoch["trial_id"].isin([trial_id for _, trial_id, _ in faults])]
    faults += _wrong_summaries(sane, trained)
    if not any(name.startswith(f"epochs/{parquet.MERGED}") for name in damaged):
        missing = trained.index[trained["epochs"] > 0].difference(by_epoch["trial_id"])
        missing = [one for one in missing if f"epochs/{one}.parquet" not in damaged]
        faults += [("epochs", one, "none of its epochs is on record") for one in missing]
    file_of = by_epoch.drop_duplicates("trial_id").set_index("trial_id")["file"]
    for kind, trial_id, what in faults:
        names = [place[trial_id] for place in (file_of, by_trial["file"]) if trial_id in place]
        yield Finding.of_trial(kind, trial_id, what, *names)


def _wrong_epochs(epochs: pd.DataFrame) -> Iterator[_Fault]:
    number = epochs.groupby("trial_id").cumcount() + 1
    is_wrong = epochs["has_null"] | epochs["test_acc"].isna() | (epochs["epoch"] != number)
    first = epochs.assign(number=number)[is_wrong].drop_duplicates("trial_id")
    for trial_id, expected, got in first[["trial_id", "number", "epoch"]].itertuples(index=False):
        yield "epochs", trial_id, f"expected epoch {expected} with all its values, got epoch {got}"


def _wrong_summaries(epochs: pd.DataFrame, trained: pd.DataFrame) -> Iterator[_Fault]:
    by_trial = epochs.groupby("trial_id")
    best = epochs.loc[by_trial["test_acc"].idxmax()].set_index("trial_id")  # the first of several
    expected = epochs.drop_duplicates("trial_id", keep="last").set_index("trial_id")[["epoch", *FINAL]]
    expected = expected.add_prefix("final_").rename(columns={"final_epoch": "epochs"})
    expected["best_test_acc"], expected["best_epoch"] = best["test_acc"], best["epoch"]
    expected["train_s"] = by_trial["epoch_s"].sum()
    both = trained.index.intersection(expected.index)
    got, expected = trained.loc[both, expected.columns].astype(float), expected.loc[both].astype(float)
    differs = (got != expected) & ~(got.isna() & expected.isna())
    differs["train_s"] = ~np.isclose(got["train_s"], expected["train_s"], rtol=1e-12, atol=0.0)  # sums differ in order
    for trial_id in both[differs.any(axis=1)]:
        columns = differs.columns[differs.loc[trial_id]]
        what = [f"{name}: expected {expected.at[trial_id, name]}, got {got.at[trial_id, name]}" for name in columns]
        yield "epochs" if "epochs" in columns else "summary", trial_id, ", ".join(what)
    status = trained["status"].loc[both]
    has_diverged = ~np.isfinite(expected[["final_train_loss", "final_test_loss"]]).all(axis=1)
    for trial_id in both[has_diverged != (status == schema.DIVERGED)]:
        yield "summary", trial_id, f"it is {status[trial_id]}, and its last loss says otherwise"
