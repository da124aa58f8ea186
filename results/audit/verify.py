"""The audit of a run folder: `python -m results verify RUN`.

Whether every file can be read and holds what its name says, every trial has the epochs 1 to n once each, summaries are
those of their epochs, bit for bit, ids are those of their contents, and nothing lies about that belongs to nothing.
What it finds, by `Finding.kind`:

    unreadable  a file that is cut off, or of which bits have turned over, or that is of another kind
    schema      a Parquet file that has not the columns of `results.store.schema`
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
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from results.audit import finding
from results.audit.documents import Documents
from results.audit.epochs import Epochs
from results.audit.finding import Finding
from results.audit.rows import Rows
from results.store import parquet, schema
from results.store.disk import Files
from results.store.folder import RunFolder

SET_ASIDE = "set-aside"
SETTLE_S = 1.0  # longer than anything stands that a process at work takes away: its temporary files, a checkpoint
KINDS = re.findall(r"^    ([a-z]+)  ", __doc__ or "", re.MULTILINE)

_UNNEEDED = "nothing needs it: set it aside (--set-aside)"
_ID = "[a-z0-9_]+-[a-z0-9_]+-[a-z0-9_]+-s[0-9]+-[0-9a-f]{8}"
_PARQUET = re.compile(rf"({_ID}|{re.escape(parquet.MERGED)}[0-9a-f]+)\.parquet")
_OWN = {  # folder: the names that files have there
    "trials": _PARQUET,
    "epochs": _PARQUET,
    "checkpoints": re.compile(rf"{_ID}\.pt"),
    "weights": re.compile(rf"{_ID}\.pt"),
    "logs": re.compile(rf"{_ID}\.log"),
    "cam": re.compile(rf"{_ID}\.png"),
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
    own = {folder: list(filter(_OWN[folder].fullmatch, names)) for folder, names in listing.items()}
    documents = Documents(run, [name for name in own[""] if name.endswith((".yaml", ".json"))])
    rows = Rows(run.files, _paths("trials", own), documents.pools)
    epochs = Epochs(run.files, _paths("epochs", own), rows, documents.recipe)
    findings = [*_foreign(listing, own), *documents.findings, *rows.findings, *epochs.findings]
    unfinished = 0
    for trial_id, names in _without_row(own, rows, epochs).items():
        has_checkpoint = f"checkpoints/{trial_id}.pt" in names
        if has_checkpoint or documents.recipe(trial_id):
            unfinished += has_checkpoint or trial_id in epochs.found
        elif not rows.is_partial and not documents.is_partial:  # else nobody can say
            findings += map(_orphan, names)
    findings += _leftovers(run, rows)
    ranked = sorted(set(findings), key=lambda one: (KINDS.index(one.kind), one))
    return Audit(tuple(ranked), len(rows.at), epochs.count, unfinished, len(rows.twice | epochs.twice))


def unreadable(run: RunFolder) -> list[Finding]:
    """The Parquet files that keep a sweep or a table from being made, and nothing else of an audit."""
    found: list[Finding] = []
    for folder, wanted in (("trials", schema.TRIALS), ("epochs", schema.EPOCHS)):
        small, merged = [], []
        for name in parquet.listed(run.files, folder):
            (merged if parquet.is_merged(name) else small).append(name)
        opened = parquet.each(run.files, functools.partial(finding.open_small, run.files, wanted=wanted), small)
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
    return [name] if other is None or parquet.is_merged(name) else [name, f"{other}/{own}"]


def _free(files: Files, name: str) -> str:
    """The name, or if something was set aside under it before, the name and a number."""
    numbered = (f"{name}.{number}" for number in itertools.count(2))
    return next(one for one in itertools.chain([name], numbered) if not files.exists(one))


def _paths(folder: str, own: Mapping[str, Sequence[str]]) -> list[str]:
    return parquet.small_first(f"{folder}/{name}" for name in own[folder])


def _foreign(listing: Mapping[str, Sequence[str]], own: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
    for folder, names in listing.items():
        for name in set(names).difference(own[folder]):
            whole = f"{folder}/{name}".lstrip("/")
            yield Finding("foreign", whole, "no sweep writes such a file; keep it elsewhere (--set-aside)", (whole,))


def _without_row(own: Mapping[str, Sequence[str]], rows: Rows, epochs: Epochs) -> dict[str, list[str]]:
    """{trial id: its files} of those that have not ended, as far as is known."""
    files: dict[str, list[str]] = defaultdict(list)
    for trial_id, name in epochs.found.items():
        files[trial_id].append(name)
    for folder in ("checkpoints", "weights", "logs", "cam"):
        for name in own[folder]:
            files[name.rpartition(".")[0]].append(f"{folder}/{name}")
    return {
        trial_id: names for trial_id, names in files.items() if trial_id not in rows.at and trial_id not in rows.lost
    }


def _orphan(name: str) -> Finding:
    what = "its trial has no row, no checkpoint to go on from, and no place in space.yaml"
    if parquet.is_merged(name):
        return Finding("orphan", name, f"of one of its trials: {what}; {finding.RESTORE_MERGED}")
    return Finding("orphan", name, f"{what}; {_UNNEEDED}", (name,))


def _leftovers(run: RunFolder, rows: Rows) -> Iterator[Finding]:
    for name in run.files.leftovers(0.0):
        yield Finding("leftover", name, f"its writer was killed; {_UNNEEDED}", (name,))
    for name in run.files.names("checkpoints"):  # anew: a trial that has just ended has taken its own away by now
        if rows.status(name.removesuffix(".pt")) in schema.TRAINED:
            whole = f"checkpoints/{name}"
            yield Finding("leftover", whole, f"its trial has ended; {_UNNEEDED}", (whole,))
