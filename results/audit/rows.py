"""The audit of `trials`: what is wrong with each row alone, and whether its id is that of its contents."""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from results.audit import finding
from results.audit.finding import Finding
from results.store import parquet, schema
from results.store.disk import Files
from search_spaces import registry
from search_spaces.chance import is_guessing
from search_spaces.errors import RequestError
from search_spaces.grid import ROLES
from search_spaces.pool import Pool
from search_spaces.recipe import Recipe
from search_spaces.trial import PROTOCOL, Trial

IDENTITY = ("pool", "arch", "dataset", "seed")
SUMMARY = (
    "best_test_acc",
    "best_epoch",
    "final_test_acc",
    "final_test_loss",
    "final_train_acc",
    "final_train_loss",
    "train_s",
)
MOST_IMAGES = 10**7  # of a test set
_ALWAYS = (*IDENTITY, "trial_id", "pool_params", "role", "hidden", "status", "recipe", "protocol", "schema_version")


class Rows:
    """Every row of `trials`.

    Attributes:
        at: {trial id: which row}, of those that are what their files' names say.
        files: the file of each row.
        columns: {name: [rows]}, of those that an audit looks into.
        lost: ids of trials whose own files cannot be read, or hold others.
        is_partial: whether a merged file cannot be read, so that there are trials that nobody knows of.
        twice: ids that stand in a merged file and in their own, alike in both.
        findings: in any order.

    Args:
        files: of the run.
        names: of the Parquet files, small ones first.
        pools: that were ever asked for.
    """

    def __init__(self, files: Files, names: Sequence[str], pools: Iterable[Pool]):
        self.at: dict[str, int] = {}
        self.files: list[str] = []
        self.lost: set[str] = set()
        self.is_partial = False
        self.twice: set[str] = set()
        self.findings: list[Finding] = []
        tables = [schema.TRIALS.empty_table()]
        for name, table in self._read(files, names):
            tables.append(table)
            self.files += [name] * len(table)
        self._table = pa.concat_tables(tables).combine_chunks()
        looked_into = {*_ALWAYS, *SUMMARY, "pool_source_sha", "error", "epochs", "test_images"}
        self.columns: Mapping[str, list[Any]] = {name: self._table[name].to_pylist() for name in looked_into}
        self._ids = _Ids(pools)
        self._index()
        for trial_id, row in self.at.items():
            self._check(trial_id, row)

    def status(self, trial_id: str) -> str | None:
        """None if there is no row."""
        return self.columns["status"][self.at[trial_id]] if trial_id in self.at else None

    def recipe(self, row: int) -> Recipe | None:
        """None if it is none."""
        return _recipe(self.columns["recipe"][row])

    def numbers(self, column: str) -> np.ndarray:
        """[rows] of float64, NaN for null."""
        return self._table[column].cast(pa.float64()).to_numpy()

    def _read(self, files: Files, names: Sequence[str]) -> Iterator[tuple[str, pa.Table]]:
        small = [name for name in names if not parquet.is_merged(name)]
        opened = parquet.each(files, functools.partial(finding.open_small, files, wanted=schema.TRIALS), small)
        for name, found in zip(small, opened, strict=True):
            trial_id = parquet.trial_id(name)
            if isinstance(found, pa.Table):
                if found["trial_id"].to_pylist() == [trial_id]:
                    yield name, found
                    continue
                found = finding.misplaced(name, found)
            if found is not None:
                self.findings.append(found)
                self.lost.add(trial_id)
        for name in names[len(small) :]:
            for found in finding.open_merged(files, name, schema.TRIALS):
                if isinstance(found, Finding):
                    self.findings.append(found)
                    self.is_partial = True
                else:
                    yield name, found

    def _index(self) -> None:
        for row, trial_id in enumerate(self.columns["trial_id"]):
            first = self.at.setdefault(trial_id, row)
            if first == row:
                continue
            is_alike = finding.alike(self._table.slice(first, 1), self._table.slice(row, 1))
            if found := finding.twice(trial_id, self.files[first], self.files[row], is_alike):
                self.findings.append(found)
            else:
                self.twice.add(trial_id)

    def _check(self, trial_id: str, row: int) -> None:
        found = {column: values[row] for column, values in self.columns.items()}
        name = self.files[row]
        if nulls := [column for column in _ALWAYS if found[column] is None]:
            self._find("row", trial_id, f"{', '.join(nulls)} is null, which it is in no row", name)
        elif found["schema_version"] > schema.SCHEMA_VERSION or found["protocol"] > PROTOCOL:
            what = f"{trial_id} was written by a newer version of this project, which is what to verify it with"
            self.findings.append(Finding("row", name, what))
        elif problems := list(_problems(found)):
            for what in problems:
                self._find("row", trial_id, what, name)
        else:
            self._check_id(found, name)

    def _check_id(self, found: Mapping[str, Any], name: str) -> None:
        trial_id, ids = found["trial_id"], self._ids.of(found)
        if not ids:
            revision = found["pool_source_sha"][:8]
            what = f"the text of {trial_id}'s pool, revision {revision}, is not in pools.json, or was changed there"
            self.findings.append(Finding("id", name, f"{what}; restore pools.json from a copy"))
        elif trial_id not in ids:
            self._find("id", trial_id, f"its contents have the id {', '.join(sorted(ids))}, not {trial_id}", name)

    def _find(self, kind: str, trial_id: str, what: str, name: str) -> None:
        self.findings.append(Finding.of_trial(kind, trial_id, what, name, name))


def _problems(row: Mapping[str, Any]) -> Iterator[str]:
    status, epochs, recipe = row["status"], row["epochs"], _recipe(row["recipe"])
    if row["schema_version"] < 1 or row["protocol"] < 1:
        yield f"schema_version is {row['schema_version']} and protocol {row['protocol']}, both count from 1"
    if status not in schema.STATUSES:
        yield f"status is {status!r}, allowed is one of {', '.join(schema.STATUSES)}"
    if row["role"] not in ROLES:
        yield f"role is {row['role']!r}, allowed is one of {', '.join(ROLES)}"
    if recipe is None:
        yield f"recipe is {row['recipe']!r}, allowed is the JSON of a recipe"
    if status in (schema.FAILED, schema.INVALID) and not row["error"]:
        yield f"it is {status} and has no error, which says why"
    if status not in schema.TRAINED:
        return
    if row["error"] is not None:
        yield f"it is {status} and has an error: {row['error']!r}"
    if missing := [column for column in ("epochs", *SUMMARY) if row[column] is None]:
        yield f"it is {status} and its {', '.join(missing)} is null"
    elif recipe and not (1 if status == schema.DIVERGED else recipe.epochs) <= epochs <= recipe.epochs:
        yield f"it is {status} after {epochs} epochs, its recipe has {recipe.epochs}"
    elif status != schema.DIVERGED:
        yield from _problems_of_learning(status, row["best_test_acc"], row["test_images"], row["dataset"])


def _problems_of_learning(status: str, best: float, images: int | None, dataset: str) -> Iterator[str]:
    """Whether a trial that did not diverge has learned what its status says."""
    if not 0 <= best <= 100:
        yield f"its best_test_acc is {best}, allowed is 0 to 100"
    elif images is not None and not 1 <= images <= MOST_IMAGES:
        yield f"its test_images is {images}, allowed is 1 to {MOST_IMAGES:,}"
    elif images is not None and dataset in registry.DATASETS:
        guesses = is_guessing(best, registry.DATASETS[dataset].classes, images)
        if guesses != (status == schema.COLLAPSED):
            yield f"it is {status} at a best accuracy of {best:.2f} % over {images} images"


@functools.lru_cache(maxsize=1024)
def _recipe(text: str) -> Recipe | None:
    try:
        return Recipe.of(json.loads(text))
    except (RequestError, ValueError, TypeError, AttributeError):
        return None


class _Ids:
    """Ids made anew from contents, the text of a candidate's file included."""

    def __init__(self, pools: Iterable[Pool]):
        self._pools: dict[tuple[str, str, str], set[Pool]] = defaultdict(set)
        for pool in pools:
            self._pools[pool.key].add(pool)

    def of(self, row: Mapping[str, Any]) -> set[str]:
        """The ids that a row may have; none if the text of its pool is not known. Its recipe can be read."""
        recipe = _recipe(row["recipe"])
        if recipe is None:
            return set()
        rest = row["arch"], row["dataset"], row["seed"], recipe, row["protocol"]
        return {Trial(pool, *rest).id for pool in self._pools_of(row)}

    def _pools_of(self, row: Mapping[str, Any]) -> list[Pool]:
        name, params, sha = row["trial_id"].partition("-")[0], row["pool_params"], row["pool_source_sha"]
        if sha is None:  # a built-in pool is all in its row
            return [_from_the_shelf(name, params)]
        known = self._pools[name, params, sha[:8]]
        return [pool for pool in known if pool.source and pool.source.sha == sha]


@functools.lru_cache(maxsize=1024)
def _from_the_shelf(name: str, params: str) -> Pool:
    try:
        return Pool.from_dict({"name": name, "params": json.loads(params), "source": None, "label": name})
    except (RequestError, ValueError, TypeError, AttributeError):
        return Pool(name)  # whose id is another
