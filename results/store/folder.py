"""The run folder: the only truth about what has been trained. This class owns every name in it.

    RUN/space.yaml                what was asked, resolved
    RUN/trials/<trial id>.parquet one row, written last: it marks the trial as ended
    RUN/epochs/<trial id>.parquet one row an epoch, rewritten as the trial goes
    RUN/attempts/<trial id>.json  a trial that has begun and not ended (`results.store.attempt`)
    RUN/checkpoints/<trial id>.pt for resuming; gone when the trial was trained to its end
    RUN/weights/<trial id>.pt     its final weights, if the sweep keeps them and the trial has completed
    RUN/logs/<trial id>.log       what the trial printed; the traceback of a failure
    RUN/cam/<trial id>.png        its class activation maps, once they were asked for
    RUN/report.html               all of it as one page, once it was asked for
    RUN/ray.log                   what Ray had to say
    RUN/driver.json               who runs the sweep (`results.store.lease`)
    RUN/{trials,epochs}/merged.*  what `compact` made of many such files
    RUN/packs.json                how many trials to train side by side, as measured
    RUN/checks.json               which pools the gate found to be one function
    RUN/pools.json                every pool that was ever asked for, with its text
    RUN/submitted.json            which revision of a candidate is its entry
    RUN/topups.json               which seeds were added after looking
    RUN/trackers/<tracker>.json   what a tracker was told (`results.track`)
    RUN/tensorboard, RUN/mlruns   what trackers on this disk make of it

RUN is a folder on a disk that every machine of the sweep sees, or a place in an object store, `s3://bucket/run`, with
the same guarantees: a reader never sees half a file, whoever is killed, and a file once written stands. On a disk each
is written beside its place and renamed into it; an object is there when its upload is complete (`results.store.disk`).
Only logs differ: an object cannot be added to, so a log is kept on its machine and uploaded with the trial's epochs.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import pyarrow as pa
import yaml
from pydantic import PlainValidator

from results.store import parquet, schema
from results.store.attempt import Attempt
from results.store.disk import Disk, Files
from results.store.logs import Log
from results.store.parquet import MERGED, Where
from results.store.s3 import ObjectStore, StoreError, is_uri
from search_spaces import strict_yaml
from search_spaces.equivalence import Equivalence
from search_spaces.errors import RequestError
from search_spaces.grid import Grid
from search_spaces.pool import Pool, StoredPool
from search_spaces.validation import Form, Line, Number, from_json, to_json, validate

FOLDERS = ("trials", "epochs", "attempts", "checkpoints", "weights", "logs")
MERGE = 20_000  # files at a time: 4 million epochs, 300 MB while they are merged
T = TypeVar("T")
ROW_GROUP = 65_536  # of a merged file: sorted by id, so that a filter skips most, in a tenth of the time for one trial


class Ended(NamedTuple):
    """How a trial ended, under what, at which attempt; None for one that the gate refused."""

    status: str
    recipe: str
    protocol: int
    attempt: int | None


class RunFolder:
    """A sweep's results.

    Reading needs nothing but the files; writing is safe from many processes at once, since no two trials share a file.

    Args:
        where: a path, or the URI of a place in an object store.

    Attributes:
        files: what is there, by name.

    Raises:
        RequestError: it is a URI, and none that can be.
    """

    def __init__(self, where: Path | str):
        self.files: Files = ObjectStore(str(where)) if is_uri(where) else Disk(Path(where))

    def __str__(self) -> str:
        """For people: the path, from here, or the URI without what is secret in it."""
        return self.files.spell()

    @property
    def where(self) -> str:
        """The absolute path or the URI, login and all: `RunFolder(run.where)` is this one in any other process."""
        return self.files.where

    @property
    def name(self) -> str:
        return self.files.name

    @property
    def on_disk(self) -> bool:
        return self.files.on_disk

    @property
    def path(self) -> Path:
        """The folder on the disk, for what needs one.

        Raises:
            RequestError: it is in an object store.
        """
        if not isinstance(self.files, Disk):
            raise RequestError.of(f"{self} is in an object store, where a folder on a disk is needed")
        return self.files.path

    def exists(self) -> bool:
        """Whether a sweep has been here.

        Raises:
            StoreError: it is in a store that cannot be asked, or has no such bucket.
        """
        # On a disk the folder is made first. In a store there is none before a trial has ended in it.
        return self.files.is_folder("trials") or (not self.on_disk and self.files.exists("space.yaml"))

    def create(self) -> None:
        """Makes the folders, and tries all that a sweep will do there.

        Raises:
            RequestError: nothing can be written there.
        """
        probe = ".writable"
        try:
            self.files.create(FOLDERS)
            self.files.write(probe, b"")
            self.files.read(probe)
            self.files.names("trials")
            self.files.remove(probe)
        except StoreError:
            raise
        except OSError as error:
            raise RequestError.of(f"the run folder {self} cannot be written: {error.strerror or error}") from None

    def discard_if_empty(self) -> None:
        """Takes the folders away again, if nothing has been written into any of them."""
        self.files.discard_if_empty()

    def tidy(self) -> None:
        """Removes what killed processes left, half-written files and checkpoints of trials that have ended.

        For who alone writes here.
        """
        for name in self.files.leftovers(older_s=0.0):
            self.files.remove(name)
        names = [f"{folder}/{name}" for folder in ("checkpoints", "attempts") for name in self.files.names(folder)]
        if not names:
            return
        wanted = {"trial_id": {parquet.trial_id(name) for name in names}, "status": schema.TRAINED}
        trained = set(self.read_trials(["trial_id"], wanted)["trial_id"].to_pylist())
        for name in names:
            if parquet.trial_id(name) in trained:
                self.files.remove(name)

    # What was asked

    def grid(self) -> Grid | None:
        """The trials of the newest sweep on this folder; None if there was none.

        Raises:
            RequestError: its space.yaml cannot be read.
        """
        try:
            return Grid.from_dict(strict_yaml.load(self.files.read("space.yaml").decode()))
        except FileNotFoundError:
            return None
        except StoreError:
            raise
        except (yaml.YAMLError, ValueError, OSError) as error:
            raise RequestError.of(f"{self.files.spell('space.yaml')} is not what a sweep wrote: {error}") from None

    def write_grid(self, grid: Grid) -> None:
        self.files.write("space.yaml", strict_yaml.dump(grid.to_dict()).encode())
        everything = {pool.key: pool for pool in [*self.pools(), *(entry.pool for entry in grid.entries)]}
        self._write_json("pools.json", [pool.to_dict() for pool in everything.values()])

    def pools(self) -> list[Pool]:
        """Every pool that a sweep on this folder has asked for, all revisions, under its newest label."""
        return self._read_json("pools.json", lambda found: validate(list[StoredPool], found), list)

    def submissions(self) -> dict[str, tuple[Pool, str]]:
        """{name of a candidate: the entry, when it was submitted}."""
        return self._read_json("submitted.json", _entries_from, dict)

    def write_submissions(self, submissions: Mapping[str, tuple[Pool, str]]) -> None:
        data = {name: {"pool": pool.to_dict(), "when": when} for name, (pool, when) in submissions.items()}
        self._write_json("submitted.json", data)

    def topups(self) -> dict[str, Any]:
        """Which seeds were asked for after looking: {arch-dataset: {target, seeds}}."""
        return self._read_json("topups.json", _topups_from, dict)

    def write_topups(self, topups: Mapping[str, Any]) -> None:
        self._write_json("topups.json", topups)

    def pack_sizes(self) -> dict[str, Any]:
        """What was measured about how many trials to train side by side: {what and where: measurements}."""
        return self._read_json("packs.json", _measurements_from, dict)

    def write_pack_sizes(self, sizes: Mapping[str, Any]) -> None:
        self._write_json("packs.json", sizes)

    def equivalences(self) -> list[Equivalence]:
        """Which pools of the newest sweep start as one function, by architecture."""
        return self._read_json("checks.json", _equivalences_from, list)

    def write_equivalences(self, found: Sequence[Equivalence]) -> None:
        self._write_json("checks.json", {"same_function": [one.to_dict() for one in found]})

    # What was measured

    def ended(self) -> dict[str, Ended]:
        """{trial id: how} of every trial that has ended."""
        table = self.read_trials(columns=["trial_id", "status", "recipe", "protocol", "attempt"])
        ids, *rest = (column.to_pylist() for column in table.columns)
        return dict(zip(ids, map(Ended, *rest), strict=True))

    def status(self, trial_id: str) -> str | None:
        """Of one trial; None if it has not ended."""
        if (own := self.own_status(trial_id)) is not None:
            return own
        found = self.read_trials(["status"], {"trial_id": trial_id})["status"]
        return found[0].as_py() if len(found) else None

    def own_status(self, trial_id: str) -> str | None:
        """As `status`, by the trial's own file alone: whatever a sweep that runs now has written, in one look."""
        return parquet.value(self.files, "status", f"trials/{trial_id}.parquet")

    def own_attempt(self, trial_id: str) -> int | None:
        """At which attempt the trial ended, by its own file alone; None if it has not, or the gate refused it."""
        return parquet.value(self.files, "attempt", f"trials/{trial_id}.parquet")

    def read_trials(self, columns: Sequence[str] | None = None, where: Where | None = None) -> pa.Table:
        """Every trial that has ended, as `schema.TRIALS`; of those only what `where` asks for.

        Raises:
            RequestError: there is no such column, or a value in `where` is none of its type, or what is there cannot be
                read.
        """
        return parquet.read(self.files, "trials", schema.TRIALS, columns, where)

    def read_new_trials(self, columns: Sequence[str], read: set[str]) -> list[dict[str, Any]]:
        """Read the rows that stand in files whose names are not in `read`, and add these names to it.

        Raises:
            RequestError: a file cannot be read.
        """
        wanted = pa.schema([schema.TRIALS.field(name) for name in columns])
        while True:
            names = [name for name in parquet.listed(self.files, "trials") if name not in read]
            try:
                with parquet.of_a_sweep(self.files, "trials"):
                    rows = parquet.concatenated(self.files, names, wanted).to_pylist()
            except FileNotFoundError:
                continue  # `compact` has just put what was in it elsewhere
            read.update(names)
            return rows

    def read_epochs(self, columns: Sequence[str] | None = None, where: Where | None = None) -> pa.Table:
        """Every epoch on record, of running trials too, as `schema.EPOCHS`; as `read_trials`."""
        return parquet.read(self.files, "epochs", schema.EPOCHS, columns, where)

    def write_trial(self, row: Mapping[str, Any]) -> None:
        self._write("trials", row["trial_id"], [row], schema.TRIALS)

    def write_epochs(self, trial_id: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self._write("epochs", trial_id, rows, schema.EPOCHS)

    def _write(self, name: str, trial_id: str, rows: Sequence[Mapping[str, Any]], wanted: pa.Schema) -> None:
        unknown = {key for row in rows for key in row} - set(wanted.names)
        if unknown:
            raise ValueError(f"no such column in {name}: {', '.join(sorted(unknown))}")
        self.files.write(f"{name}/{trial_id}.parquet", parquet.written(pa.Table.from_pylist(list(rows), schema=wanted)))

    def compact(self) -> int:
        """Merges the small files of trials that were trained to their ends; how many.

        Readers and a running sweep go on meanwhile. A merged file appears first and the small ones go after, so that
        for a moment rows stand twice, which this class knows and other readers of the folder may see. Failed trials
        stay as they are: they may be run again.
        """
        small = [name for name in parquet.listed(self.files, "trials") if not parquet.is_merged(name)]
        with parquet.of_a_sweep(self.files, "trials"):
            statuses = [*parquet.each(self.files, lambda name: parquet.value(self.files, "status", name), small)]
        done = [
            parquet.trial_id(name) for name, status in zip(small, statuses, strict=True) if status in schema.TRAINED
        ]
        for folder, wanted in (("epochs", schema.EPOCHS), ("trials", schema.TRIALS)):
            with parquet.of_a_sweep(self.files, folder):
                self._merge(folder, done, wanted)
        return len(done)

    def _merge(self, folder: str, trial_ids: Sequence[str], wanted: pa.Schema) -> None:
        there = parquet.listed(self.files, folder)
        merged = [name for name in there if parquet.is_merged(name)]
        ids = parquet.concatenated(self.files, merged, pa.schema([wanted.field("trial_id")]))["trial_id"]
        before = set(ids.unique().to_pylist())
        done = set(trial_ids)
        small = [name for name in there if not parquet.is_merged(name) and parquet.trial_id(name) in done]
        new = [name for name in small if parquet.trial_id(name) not in before]  # the rest is what a killed merge left
        for start in range(0, len(new), MERGE):
            self.write_merged(folder, parquet.concatenated(self.files, new[start : start + MERGE], wanted))
        for _ in parquet.each(self.files, self.files.remove, small):
            pass

    def write_merged(self, name: str, rows: pa.Table) -> None:
        """Rows of many trials, as one file of `trials` or `epochs`."""
        data = parquet.written(rows, compression="zstd", row_group_size=ROW_GROUP)
        self.files.write(f"{name}/{MERGED}{uuid.uuid4().hex[:12]}.parquet", data)

    # What a trial needs while it runs

    def checkpoint(self, trial_id: str) -> StoredFile:
        return StoredFile(self.files, f"checkpoints/{trial_id}.pt")

    def weights(self, trial_id: str) -> StoredFile:
        """Its final weights, a state_dict as `torch.save` writes it; there before its row is."""
        return StoredFile(self.files, f"weights/{trial_id}.pt")

    def begun(self) -> list[str]:
        """The ids of the trials that have begun and have not ended."""
        return [name.removesuffix(".json") for name in self.files.names("attempts")]

    def under_way(self) -> dict[str, tuple[Attempt, float]]:
        """{trial id: how far it has come, when it said so in seconds since 1970} of those that have begun."""

        def look(trial_id: str) -> tuple[Attempt, float] | None:
            attempt, written = self.attempt(trial_id), self.files.modified(_attempt(trial_id))
            return (attempt, written) if attempt and written else None  # None if it has just ended

        begun = self.begun()
        return {name: found for name, found in zip(begun, parquet.each(self.files, look, begun), strict=True) if found}

    def attempt(self, trial_id: str) -> Attempt | None:
        """How far the trial has come; None if it has not begun, or has ended."""
        try:
            return from_json(Attempt, self.files.read(_attempt(trial_id)))
        except FileNotFoundError:
            return None

    def write_attempt(self, trial_id: str, attempt: Attempt) -> None:
        self.files.write(_attempt(trial_id), to_json(attempt))

    def end_attempt(self, trial_id: str) -> None:
        """Says that the trial is not under way any more; its row is written before."""
        self.files.remove(_attempt(trial_id))

    def open_log(self, trial_id: str) -> Log:
        """The trial's log, open for appending: a second attempt adds to what the first one left."""
        return self.files.append(_log(trial_id))

    def has_log(self, trial_id: str) -> bool:
        """Whether the trial has ever begun."""
        return self.files.exists(_log(trial_id))

    def log_text(self, trial_id: str) -> str | None:
        """What the trial's attempts have printed; None if there was none.

        In an object store it has what was saved, and what an attempt that was killed on this machine did not.
        """
        found = self.files.log(_log(trial_id))
        return None if found is None else found.decode(errors="replace")

    def logs(self) -> set[str]:
        """The ids of all trials that have a log: those that have begun."""
        return {name.removesuffix(".log") for name in self.files.names("logs") if name.endswith(".log")}

    def log_place(self, trial_id: str) -> str:
        """The path or the URI of its log, for people."""
        return self.files.spell(_log(trial_id))

    def ray_log(self) -> Log:
        """What Ray itself had to say, over all sweeps on this folder; open for appending."""
        return self.files.append("ray.log")

    # What is made of it

    def tracked(self, tracker: str) -> StoredFile:
        """What a tracker was told of each trial."""
        self.files.create(["trackers"])
        return StoredFile(self.files, f"trackers/{tracker}.json")

    def write_picture(self, trial_id: str, png: bytes) -> str:
        """The trial's class activation maps; where they are."""
        self.files.create(["cam"])
        return self._write_page(f"cam/{trial_id}.png", png)

    def write_report(self, page: str) -> str:
        """The page of the run; where it is."""
        return self._write_page("report.html", page.encode())

    def _write_page(self, name: str, data: bytes) -> str:
        self.files.write(name, data)
        return self.files.spell(name)

    def _read_json(self, name: str, parse: Callable[[Any], T], otherwise: Callable[[], T]) -> T:
        """What `parse` makes of a file, or `otherwise` where there is none.

        Raises:
            RequestError: it is not what a sweep wrote, whoever did.
        """
        try:
            return parse(json.loads(self.files.read(name)))
        except FileNotFoundError:
            return otherwise()
        except StoreError:
            raise
        except (OSError, ValueError, RecursionError) as error:
            raise RequestError.of(f"{self.files.spell(name)} is not what a sweep wrote: {error}") from None

    def _write_json(self, name: str, data: Any) -> None:
        self.files.write(name, json.dumps(data, indent=1).encode())


@dataclass(frozen=True, slots=True)
class StoredFile:
    """The place of one trial's checkpoint (`trainer.checkpoint.Slot`), or of its weights."""

    files: Files
    name: str

    def __str__(self) -> str:
        return self.files.spell(self.name)

    def read(self) -> bytes | None:
        try:
            return self.files.read(self.name)
        except FileNotFoundError:
            return None

    def write(self, data: bytes) -> None:
        self.files.write(self.name, data)

    def remove(self) -> None:
        self.files.remove(self.name)


def _attempt(trial_id: str) -> str:
    return f"attempts/{trial_id}.json"


def _log(trial_id: str) -> str:
    return f"logs/{trial_id}.log"


# What the JSON files hold


class _Submission(Form):
    pool: StoredPool
    when: Line


class _Topup(Form):
    target: Number
    seeds: list[int]


class _Measurement(Form):
    size: int
    start_s: Number
    epoch_s: Number
    images_per_s: Number
    memory_mb: Number | None = None


class _Checks(Form):
    same_function: list[Annotated[Equivalence, PlainValidator(Equivalence.from_dict)]]


def _entries_from(data: Any) -> dict[str, tuple[Pool, str]]:
    return {name: (entry.pool, entry.when) for name, entry in validate(dict[Line, _Submission], data).items()}


def _topups_from(data: Any) -> dict[str, Any]:
    return {pair: topup.model_dump() for pair, topup in validate(dict[Line, _Topup], data).items()}


def _measurements_from(data: Any) -> dict[str, Any]:
    found = validate(dict[Line, list[_Measurement]], data)
    return {place: [one.model_dump() for one in measurements] for place, measurements in found.items()}


def _equivalences_from(data: Any) -> list[Equivalence]:
    return validate(_Checks, data).same_function
