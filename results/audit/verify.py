"""The audit of a run folder: `python -m results verify RUN`.

Whether every file can be read and holds what its name says, every trial has the epochs 1 to n once each, summaries are
those of their epochs, bit for bit, ids are those of their contents, and nothing lies about that belongs to nothing.
What it finds, by `Finding.kind`:

    unreadable  a file that is cut off, or of which bits have turned over, or that is of another kind
    schema      a Parquet file that has not the columns of `results.schema`
    foreign     a file that no sweep writes
    misplaced   a file that holds another trial than its name says
    twice       a trial that stands in two places and is not the same in both, or for good
    row         a row that no trial can have
    id          a row whose contents have another id
    epochs      epochs that are not 1 to n in order, or not as many as their trial's row says, or that cannot be
    identity    epochs of another pool, architecture, dataset or seed than their trial's row says
    schedule    a learning rate that is not the recipe's
    summary     a row that does not follow from its epochs
    orphan      a file of a trial that has no row, no checkpoint to go on from, and no place in space.yaml
    leftover    what a killed process left and nobody needs

A run in progress is no fault: a trial that has epochs or a checkpoint and no row is `unfinished`. Neither is a newer
space.yaml that gives a trial another role than its row has. What a failed trial had come to is not compared with its
epochs: it may be tried again, and then they are those of the new attempt.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from results import finding, reading, schema
from results.audit_epochs import Epochs
from results.audit_rows import ENDED, Rows
from results.files import Files
from results.finding import Finding
from results.store import RunFolder
from trainer.grid import Grid
from trainer.problems import RequestError
from trainer.recipe import Recipe

SET_ASIDE = "set-aside"
SETTLE_S = 1.0  # longer than anything stands that a process at work takes away: its temporary files, a checkpoint
KINDS = re.findall(r"^    ([a-z]+)  ", __doc__ or "", re.MULTILINE)

_UNNEEDED = "nothing needs it: set it aside (--set-aside)"
_OWN = {  # folder: the names that files have there
    "trials": finding.PARQUET,
    "epochs": finding.PARQUET,
    "checkpoints": re.compile(rf"{finding.ID}\.pt"),
    "weights": re.compile(rf"{finding.ID}\.pt"),
    "logs": re.compile(rf"{finding.ID}\.log"),
    "cam": re.compile(rf"{finding.ID}\.png"),
    "": re.compile(
        r"(space|topup-.*)\.yaml|(pools|checks|packs|submitted|topups|driver)\.json|ray\.log|(report|leaderboard)\..*"
    ),
}


@dataclass(frozen=True, slots=True)
class Audit:
    """What a run folder came to.

    Attributes:
        findings: in the order of the list above.
        trials: that have ended, without those in files that cannot be read.
        epochs: on record, each once.
        unfinished: trials that have begun and have not ended.
        twice: trials that stand in a merged file and in their own, since `compact` is at work or was killed.
    """

    findings: tuple[Finding, ...]
    trials: int
    epochs: int
    unfinished: int
    twice: int

    def __str__(self) -> str:
        parts = [f"{self.trials:,} trials", f"{self.epochs:,} epochs"]
        parts += [f"{self.unfinished:,} unfinished"] if self.unfinished else []
        parts += [f"{self.twice:,} twice until the next `compact`"] if self.twice else []
        found = f"{len(self.findings):,} finding{'s' * (len(self.findings) > 1)}" if self.findings else "all is well"
        return f"{', '.join(parts)}: {found}"


def verify(run: RunFolder, settle_s: float = SETTLE_S) -> Audit:
    """The audit of a folder in which a sweep may be at work: what is not found twice was only being done."""
    first = audit(run)
    if not first.findings:
        return first
    time.sleep(settle_s)
    second = audit(run)
    stays = set(first.findings)
    return dataclasses.replace(second, findings=tuple(one for one in second.findings if one in stays))


def audit(run: RunFolder) -> Audit:
    """All that is wrong with a run folder, as it is found at this moment.

    Raises:
        OSError, RequestError: it is in a store that does not answer.
    """
    listing = {folder: run.files.names(folder) for folder in _OWN}
    asked = _Asked(run)
    rows = Rows(run, finding.parquet_files(listing["trials"], "trials"))
    epochs = Epochs(run.files, finding.parquet_files(listing["epochs"], "epochs"), rows, asked.recipe)
    findings = [*_documents(run, listing[""]), *_foreign(listing), *rows.findings, *epochs.findings]
    unfinished = 0
    for trial_id, names in _without_row(listing, rows, epochs).items():
        has_checkpoint = f"checkpoints/{trial_id}.pt" in names
        if has_checkpoint or asked.recipe(trial_id):
            unfinished += has_checkpoint or trial_id in epochs.found
        elif not rows.is_partial and not asked.is_unreadable:  # else nobody can say
            findings += map(_orphan, names)
    findings += _leftovers(run, rows)
    ranked = sorted(set(findings), key=lambda one: (KINDS.index(one.kind), one))
    return Audit(tuple(ranked), len(rows.at), epochs.count, unfinished, len(rows.twice | epochs.twice))


def unreadable(run: RunFolder) -> list[Finding]:
    """The Parquet files that keep a sweep or a table from being made, and nothing else of an audit."""
    found: list[Finding] = []
    for folder, wanted in (("trials", schema.TRIALS), ("epochs", schema.EPOCHS)):
        small, merged = [], []
        for name in reading.listed(run.files, folder):
            (merged if reading.is_merged(name) else small).append(name)
        opened = reading.each(run.files, functools.partial(finding.open_small, run.files, wanted=wanted), small)
        parts = itertools.chain.from_iterable(finding.open_merged(run.files, name, wanted) for name in merged)
        found += [one for one in itertools.chain(opened, parts) if isinstance(one, Finding)]
    return found


def set_aside(run: RunFolder, names: Iterable[str]) -> list[str]:
    """Moves files out of the way, into RUN/set-aside, and deletes nothing; where they are now.

    With the row of a trial go its epochs, and its row with its epochs, so that a sweep trains it anew. What stands in a
    merged file goes with that file alone.

    Args:
        names: of files, within the run folder; those that are not there are passed over.

    Raises:
        OSError: one cannot be moved; those before it have been.
    """
    moved = []
    for name in dict.fromkeys(itertools.chain.from_iterable(map(_with_companion, names))):
        if run.files.exists(name):
            place = _free(run.files, f"{SET_ASIDE}/{name}")
            run.files.create([place.rpartition("/")[0]])
            run.files.write(place, run.files.read(name))
            run.files.remove(name)
            moved.append(place)
    return moved


def _with_companion(name: str) -> list[str]:
    folder, _, own = name.partition("/")
    other = {"trials": "epochs", "epochs": "trials"}.get(folder)
    return [name] if other is None or reading.is_merged(name) else [name, f"{other}/{own}"]


def _free(files: Files, name: str) -> str:
    """The name, or if something was set aside under it before, the name and a number."""
    numbered = (f"{name}.{number}" for number in itertools.count(2))
    return next(one for one in itertools.chain([name], numbered) if not files.exists(one))


def _foreign(listing: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
    for folder, names in listing.items():
        for name in names:
            if not _OWN[folder].fullmatch(name):
                whole = f"{folder}/{name}".lstrip("/")
                yield Finding(
                    "foreign", whole, "no sweep writes such a file; keep it elsewhere (--set-aside)", (whole,)
                )


def _documents(run: RunFolder, names: Sequence[str]) -> Iterator[Finding]:
    """Those of the files in YAML and JSON that cannot be parsed, or are not what a sweep writes."""
    read: dict[str, Callable[[], Any]] = {
        "space.yaml": run.grid,
        "pools.json": run.pools,
        "submitted.json": run.submissions,
        "topups.json": run.topups,
        "packs.json": run.pack_sizes,
        "checks.json": run.same_functions,
    }
    for name in names:
        if not _OWN[""].fullmatch(name) or not name.endswith((".yaml", ".json")):
            continue
        parse = yaml.safe_load if name.endswith(".yaml") else json.loads
        try:
            parse(run.files.read(name))
            read.get(name, lambda: None)()
        except FileNotFoundError:  # it has just gone
            continue
        except (RequestError, ValueError, yaml.YAMLError, RecursionError) as error:
            reason, *_ = str(error).splitlines() or [type(error).__name__]
            yield Finding("unreadable", name, f"{reason}; {finding.RESTORE}", (name,))


def _without_row(listing: Mapping[str, Sequence[str]], rows: Rows, epochs: Epochs) -> dict[str, list[str]]:
    """{trial id: its files} of those that have not ended, as far as is known."""
    files: dict[str, list[str]] = defaultdict(list)
    for trial_id, name in epochs.found.items():
        files[trial_id].append(name)
    for folder in ("checkpoints", "weights", "logs", "cam"):
        for name in filter(_OWN[folder].fullmatch, listing[folder]):
            files[name.rpartition(".")[0]].append(f"{folder}/{name}")
    return {
        trial_id: names for trial_id, names in files.items() if trial_id not in rows.at and trial_id not in rows.lost
    }


def _orphan(name: str) -> Finding:
    what = "its trial has no row, no checkpoint to go on from, and no place in space.yaml"
    if reading.is_merged(name):
        return Finding("orphan", name, f"of one of its trials: {what}; {finding.RESTORE_MERGED}")
    return Finding("orphan", name, f"{what}; {_UNNEEDED}", (name,))


def _leftovers(run: RunFolder, rows: Rows) -> Iterator[Finding]:
    for name in run.files.leftovers(0.0):
        yield Finding("leftover", name, f"its writer was killed; {_UNNEEDED}", (name,))
    for name in run.files.names("checkpoints"):  # anew: a trial that has just ended has taken its own away by now
        if rows.status(name.removesuffix(".pt")) in ENDED:
            whole = f"checkpoints/{name}"
            yield Finding("leftover", whole, f"its trial has ended; {_UNNEEDED}", (whole,))


class _Asked:
    """The trials of space.yaml.

    Attributes:
        is_unreadable: whether there is one, and it cannot be read.
    """

    def __init__(self, run: RunFolder):
        self.is_unreadable = False
        self._grid: Grid | None = None
        try:
            self._grid = run.grid()
        except RequestError:  # `_documents` says so
            self.is_unreadable = True

    def recipe(self, trial_id: str) -> Recipe | None:
        """Of a trial; None if it was not asked for."""
        return self._grid.recipe if self._grid and trial_id in self._ids else None

    @functools.cached_property
    def _ids(self) -> set[str]:
        """An id takes 10 µs, and nobody asks while every trial has a row."""
        return {planned.trial.id for planned in self._grid or ()}
