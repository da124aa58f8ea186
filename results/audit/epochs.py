"""The audit of `epochs`: 1 to n in order, and what their trials' rows say follows from them, bit for bit.

Two million of them, of 10,000 trials, are looked at in seconds: many trials at a time, those that are equally long as
one array, and a part of a merged file after the other.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

from results.audit import finding
from results.audit.finding import Finding
from results.audit.rows import IDENTITY, SUMMARY, Rows
from results.store import parquet, schema
from results.store.disk import Files
from search_spaces.recipe import Recipe

BLOCK = 512  # small files at a time
MEASURED = ("train_loss", "train_acc", "test_loss", "test_acc", "lr", "epoch_s")


class Epochs:
    """Every epoch on record.

    Attributes:
        found: {trial id: the file that has its epochs, the first of them}.
        count: of epochs, each once.
        twice: ids that stand in a merged file and in their own, alike in both.
        findings: in any order.

    Args:
        recipe_of: the recipe of a trial that has no row yet; None where nobody knows it.
    """

    def __init__(self, files: Files, names: Sequence[str], rows: Rows, recipe_of: Callable[[str], Recipe | None]):
        self.found: dict[str, str] = {}
        self.count = 0
        self.twice: set[str] = set()
        self.findings: list[Finding] = []
        self._files = files
        self._rows = rows
        self._recipe_of = recipe_of
        self._said = {column: rows.numbers(column) for column in ("epochs", *SUMMARY)}
        self._unknown: set[str] = set()  # trials of which a file cannot be read
        self._is_partial = False
        for block in self._blocks(names):
            self._check(block)
        self._check_missing()

    def _blocks(self, names: Sequence[str]) -> Iterator[_Block]:
        small = [name for name in names if not parquet.is_merged(name)]
        opened = parquet.each(
            self._files, functools.partial(finding.open_small, self._files, wanted=schema.EPOCHS), small
        )
        named = zip(small, opened, strict=True)
        while part := list(itertools.islice(named, BLOCK)):
            for name, found in part:
                if isinstance(found, Finding):
                    self.findings.append(found)
                    self._unknown.add(parquet.trial_id(name))
            if tables := [(name, found) for name, found in part if isinstance(found, pa.Table)]:
                yield _Block(tables)
        for name in names[len(small) :]:
            yield from self._blocks_of_merged(name)

    def _blocks_of_merged(self, name: str) -> Iterator[_Block]:
        """Part by part; the last trial of each may go on in the next, and waits for it."""
        rest = schema.EPOCHS.empty_table()
        for found in finding.open_merged(self._files, name, schema.EPOCHS):
            if isinstance(found, Finding):
                self.findings.append(found)
                self._is_partial = True
                return
            table = pa.concat_tables([rest, found])
            changes = np.flatnonzero(np.diff(_codes(table, "trial_id")))
            whole = int(changes[-1]) + 1 if len(changes) else 0
            rest = table.slice(whole)
            yield _Block([(name, table.slice(0, whole))])
        yield _Block([(name, rest)])

    def _check(self, block: _Block) -> None:
        sane = np.zeros(len(block.ids), bool)
        for trial, trial_id in enumerate(block.ids):
            if not self._is_new(block, trial):
                continue
            self.found[str(trial_id)] = block.name(trial)
            self.count += int(block.lengths[trial])
            if block.has_null[trial]:
                self._find("epochs", block, trial, "a value is null, which none is")
            elif block.is_mixed[trial]:
                self._find("identity", block, trial, f"not all of them have the same {', '.join(IDENTITY)}")
            else:
                sane[trial] = True
        for length in np.unique(block.lengths[sane]):
            self._check_equally_long(block, np.flatnonzero(sane & (block.lengths == length)), int(length))

    def _is_new(self, block: _Block, trial: int) -> bool:
        """Whether a trial stands in a file that may have it, and has not stood anywhere else."""
        trial_id, name = block.ids[trial], block.name(trial)
        if trial_id is None or (not parquet.is_merged(name) and trial_id != parquet.trial_id(name)):
            self._unknown.add(parquet.trial_id(name))
            self.findings.append(finding.misplaced(name, block.rows_of_file(trial)))
            return False
        before = self.found.get(trial_id)
        if before is None:
            return True
        if before == name:
            self._find("epochs", block, trial, "its rows do not stand together")
            return False
        first = None if parquet.is_merged(before) else finding.open_small(self._files, before, schema.EPOCHS)
        is_alike = isinstance(first, pa.Table) and finding.alike(first, block.rows(trial))
        if found := finding.twice(trial_id, before, name, is_alike):
            self.findings.append(found)
        else:
            self.twice.add(trial_id)
        return False

    def _check_equally_long(self, block: _Block, trials: np.ndarray, length: int) -> None:
        numbers = block.values("epoch", trials, length)
        in_order = (numbers == np.arange(1, length + 1)).all(axis=1)
        for index in np.flatnonzero(~in_order):
            self._find("epochs", block, trials[index], _say_order(numbers[index].tolist()))
        trials = trials[in_order]
        ids = [str(block.ids[trial]) for trial in trials]
        rows = np.array([self._rows.at.get(trial_id, -1) for trial_id in ids], int)
        values = {name: block.values(name, trials, length) for name in MEASURED}
        self._check_values(block, trials, values)
        self._check_schedule(block, trials, rows, values["lr"])
        has_row = np.flatnonzero(rows >= 0)
        self._check_identity(block, trials[has_row], rows[has_row])
        status = self._rows.columns["status"]
        trained = np.array([index for index in has_row if status[rows[index]] in schema.TRAINED], int)
        self._check_summary(block, trials[trained], rows[trained], {name: values[name][trained] for name in values})

    def _check_values(self, block: _Block, trials: np.ndarray, values: Mapping[str, np.ndarray]) -> None:
        possible = np.isfinite(values["epoch_s"]) & (values["epoch_s"] >= 0)
        for name in ("train_acc", "test_acc"):
            possible &= (values[name] >= 0) & (values[name] <= 100)
        for index in np.flatnonzero(~possible.all(axis=1)):
            epoch = int(np.argmin(possible[index])) + 1
            what = f"epoch {epoch} has an accuracy that is not from 0 to 100, or an epoch_s that is no time"
            self._find("epochs", block, trials[index], what)
        went_on = _diverged(values)[:, :-1]
        for index in np.flatnonzero(went_on.any(axis=1)):
            epoch = int(np.argmax(went_on[index])) + 1
            self._find("epochs", block, trials[index], f"a loss is not finite in epoch {epoch}, and it went on")

    def _check_schedule(self, block: _Block, trials: np.ndarray, rows: np.ndarray, lr: np.ndarray) -> None:
        of_recipe: dict[Recipe | None, list[int]] = defaultdict(list)
        for index, row in enumerate(rows):
            known = self._rows.recipe(row) if row >= 0 else self._recipe_of(str(block.ids[trials[index]]))
            of_recipe[known].append(index)
        for recipe, indices in of_recipe.items():
            if recipe is None:
                continue
            if lr.shape[1] > recipe.epochs:
                for index in indices:
                    what = f"there are {lr.shape[1]} of them, its recipe has {recipe.epochs}"
                    self._find("epochs", block, trials[index], what)
                continue
            planned = np.array([recipe.lr_after(epoch) for epoch in range(1, lr.shape[1] + 1)])
            # Another machine's cosine may differ in its last digit.
            wrong = ~np.isclose(lr[indices], planned, rtol=1e-12, atol=1e-12 * recipe.lr)
            for which in np.flatnonzero(wrong.any(axis=1)):
                epoch = int(np.argmax(wrong[which]))
                what = f"lr is {lr[indices[which], epoch]} after epoch {epoch + 1}, its recipe has {planned[epoch]}"
                self._find("schedule", block, trials[indices[which]], what)

    def _check_identity(self, block: _Block, trials: np.ndarray, rows: np.ndarray) -> None:
        first = block.table.select(IDENTITY).take(pa.array(block.starts[trials]))
        for column in IDENTITY:
            said = self._rows.columns[column]
            for trial, row, here in zip(trials, rows, first[column].to_pylist(), strict=True):
                # A trial that failed under another label may be tried again.
                relabelled = column == "pool" and self._rows.columns["status"][row] not in schema.TRAINED
                if here != said[row] and not relabelled:
                    self._find("identity", block, trial, f"{column} is {here!r}, its row has {said[row]!r}")

    def _check_summary(
        self, block: _Block, trials: np.ndarray, rows: np.ndarray, values: Mapping[str, np.ndarray]
    ) -> None:
        """Of trials that were trained to their ends."""
        diverged = _diverged(values)[:, -1]
        said = {name: numbers[rows] for name, numbers in self._said.items()}
        expected = _summary(values)
        wrong = {name: _bits(said[name]) != _bits(expected[name]) for name in expected}
        for index in np.flatnonzero(wrong["train_s"]):  # Python sums without a rounding error a step since 3.12
            wrong["train_s"][index] = said["train_s"][index] != math.fsum(values["epoch_s"][index])
        differs = np.logical_or.reduce(list(wrong.values()))
        for index, (trial, row) in enumerate(zip(trials, rows, strict=True)):
            status = self._rows.columns["status"][row]
            if said["epochs"][index] != values["lr"].shape[1]:
                what = f"there are {values['lr'].shape[1]} of them, its row has {said['epochs'][index]:g}"
                self._find("epochs", block, trial, what)
            elif bool(diverged[index]) != (status == schema.DIVERGED):
                losses = "is not finite" if diverged[index] else "is finite"
                self._find("summary", block, trial, f"its last loss {losses}, and its row says {status}")
            elif differs[index]:
                parts = [
                    f"{name} is {said[name][index]} in its row and {expected[name][index]} by its epochs"
                    for name in expected
                    if wrong[name][index]
                ]
                self._find("summary", block, trial, ", ".join(parts))

    def _check_missing(self) -> None:
        """Trials that were trained, and of which no epoch is on record."""
        if self._is_partial:
            return  # it says enough
        for trial_id, row in self._rows.at.items():
            trained = self._said["epochs"][row]
            if trained > 0 and trial_id not in self.found and trial_id not in self._unknown:
                name = self._rows.files[row]
                what = f"it has {trained:g} epochs, and none of them is on record"
                self.findings.append(Finding.of_trial("epochs", trial_id, what, name, name))

    def _find(self, kind: str, block: _Block, trial: int, what: str) -> None:
        trial_id = str(block.ids[trial])
        row_in = self._rows.files[self._rows.at[trial_id]] if trial_id in self._rows.at else ""
        self.findings.append(Finding.of_trial(kind, trial_id, what, block.name(trial), row_in))


class _Block:
    """Rows of `schema.EPOCHS` in which those of a trial stand together, and where each trial begins.

    Attributes:
        table: [rows].
        ids, starts, lengths, has_null, is_mixed: [trials]; mixed are those that have more than one identity.
    """

    def __init__(self, files: Sequence[tuple[str, pa.Table]]):
        self.table = pa.concat_tables([table for _, table in files]).combine_chunks()
        self._names = [name for name, _ in files]
        self._file = np.repeat(np.arange(len(files)), [len(table) for _, table in files])
        codes = {name: _codes(self.table, name) for name in ("trial_id", *IDENTITY)}
        begins = np.diff(codes["trial_id"], prepend=-2) != 0
        begins |= np.diff(self._file, prepend=-1) != 0
        self.starts = np.flatnonzero(begins)
        self.lengths = np.diff(self.starts, append=len(self.table))
        self.ids: list[str | None] = self.table["trial_id"].take(pa.array(self.starts)).to_pylist()
        trial = np.cumsum(begins) - 1  # of each row
        changes = np.logical_or.reduce([codes[name] != codes[name][self.starts][trial] for name in IDENTITY])
        nulls = np.logical_or.reduce([column.is_null().to_numpy() for column in self.table.columns])
        self.is_mixed = np.bincount(trial, changes, len(self.starts)) > 0
        self.has_null = np.bincount(trial, nulls, len(self.starts)) > 0

    def name(self, trial: int) -> str:
        return self._names[self._file[self.starts[trial]]]

    def rows(self, trial: int) -> pa.Table:
        return self.table.slice(self.starts[trial], self.lengths[trial])

    def rows_of_file(self, trial: int) -> pa.Table:
        return self.table.filter(pa.array(self._file == self._file[self.starts[trial]]))

    def values(self, column: str, trials: np.ndarray, length: int) -> np.ndarray:
        """[trials, length] of trials that are all so long, and have no null."""
        at = self.starts[trials][:, None] + np.arange(length)
        return self.table[column].to_numpy()[at]


def _codes(table: pa.Table, column: str) -> np.ndarray:
    """[rows]: equal where the values are; -1 for null."""
    return table[column].combine_chunks().dictionary_encode().indices.fill_null(-1).to_numpy(zero_copy_only=False)


def _say_order(numbers: list[int]) -> str:
    seen = Counter(numbers)
    missing = sorted(set(range(1, max(numbers) + 1)) - set(numbers))
    parts = [f"epoch {epoch} stands {count} times" for epoch, count in seen.items() if count > 1]
    parts += [f"epoch {epoch} is missing" for epoch in missing]
    parts += [f"epoch {epoch} is none" for epoch in seen if epoch < 1]
    return ", ".join(parts[:5]) + (f" and {len(parts) - 5} more" if len(parts) > 5 else "") or "they are not in order"


def _diverged(values: Mapping[str, np.ndarray]) -> np.ndarray:
    """[trials, epochs]: as `trainer.epoch.Epoch.diverged`."""
    return ~(np.isfinite(values["train_loss"]) & np.isfinite(values["test_loss"]))


def _summary(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """{column of a trial: [trials]}, as `orchestrator.record.row` makes them: the first of several best epochs."""
    return {
        "best_test_acc": values["test_acc"].max(axis=1),
        "best_epoch": values["test_acc"].argmax(axis=1) + 1,
        **{f"final_{name}": values[name][:, -1] for name in ("test_acc", "test_loss", "train_acc", "train_loss")},
        "train_s": values["epoch_s"].cumsum(axis=1)[:, -1],  # one after the other, as Python's sum
    }


def _bits(numbers: np.ndarray) -> np.ndarray:
    """Of float64: a NaN is like itself."""
    return np.ascontiguousarray(numbers, np.float64).view(np.int64)
