"""The run folder: the only truth about what has been trained. This is the list of every name in it.

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
    RUN/set-aside                 what `verify --set-aside` moved out of the way (`results.store.set_aside`)
    RUN/trackers/<tracker>.json   which ends a tracker has logged (`results.track`), and a .lock beside it
    RUN/tensorboard, RUN/mlruns   what trackers on this disk make of it

RUN is a folder on a disk that every machine of the sweep sees, or a place in an object store, `s3://bucket/run`, with
the same guarantees: a reader never sees half a file, whoever is killed, and a file once written stands. On a disk each
is written beside its place and renamed into it; an object is there when its upload is complete (`results.store.disk`).
Only logs differ: an object cannot be added to, so a log is kept on its machine and uploaded with the trial's epochs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from results.store import documents, parquet, schema
from results.store.attempt import Attempt
from results.store.disk import Disk, Files
from results.store.documents import Document
from results.store.logs import Log
from results.store.s3 import ObjectStore, StoreError, is_uri
from results.store.tables import Table
from results.store.trial_files import Ended, StoredFile, TrialFiles
from search_spaces.errors import RequestError
from search_spaces.grid import Grid

FOLDERS = ("trials", "epochs", "attempts", "checkpoints", "weights", "logs")
PASSING = ("checkpoints", "attempts")  # of a trial that has not ended


class RunFolder:
    """A sweep's results.

    Reading needs nothing but the files; writing is safe from many processes at once, since no two trials share a file.

    Args:
        where: a path, or the URI of a place in an object store.

    Attributes:
        files: what is there, by name.
        trials, epochs: the tables.
        space, pools, submissions, topups, pack_sizes, equivalences: the documents (`results.store.documents`).

    Raises:
        RequestError: it is a URI, and none that can be.
    """

    def __init__(self, where: Path | str):
        self.files: Files = ObjectStore(str(where)) if is_uri(where) else Disk(Path(where))
        self.trials = Table(self.files, "trials")
        self.epochs = Table(self.files, "epochs")
        self.space = documents.space(self.files)
        self.pools = documents.pools(self.files)
        self.submissions = documents.submissions(self.files)
        self.topups = documents.topups(self.files)
        self.pack_sizes = documents.pack_sizes(self.files)
        self.equivalences = documents.equivalences(self.files)

    def __str__(self) -> str:
        """Return the path, from here, or the URI without what is secret in it, for people."""
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

    @property
    def documents(self) -> dict[str, Document[Any]]:
        """All documents, by the names of their files."""
        return {one.name: one for one in vars(self).values() if isinstance(one, Document)}

    def exists(self) -> bool:
        """Return whether a sweep has been here.

        Raises:
            StoreError: it is in a store that cannot be asked, or has no such bucket.
        """
        # On a disk the folder is made first. In a store there is none before a trial has ended in it.
        return self.files.is_folder("trials") or (not self.on_disk and self.files.exists(self.space.name))

    def create(self) -> None:
        """Make the folders, and try all that a sweep will do there.

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
        """Remove the folders again, if nothing has been written into any of them."""
        self.files.discard_if_empty()

    def tidy(self) -> None:
        """Remove what killed processes left: half-written files, and checkpoints of trials that have ended.

        Only the one driver that has the lease may do so.
        """
        for name in self.files.leftovers():
            self.files.remove(name)
        names = [f"{folder}/{name}" for folder in PASSING for name in self.files.names(folder)]
        if not names:
            return
        wanted = {"trial_id": {parquet.trial_id(name) for name in names}, "status": schema.TRAINED}
        trained = set(self.trials.read(["trial_id"], wanted)["trial_id"].to_pylist())
        for name in names:
            if parquet.trial_id(name) in trained:
                self.files.remove(name)

    def write_grid(self, grid: Grid) -> None:
        """Write down what a sweep was asked for."""
        self.space.write(grid)
        pools = [*self.pools.read(), *(entry.pool for entry in grid.entries)]
        self.pools.write([*{pool.key: pool for pool in pools}.values()])

    def write_trial(self, row: Mapping[str, Any]) -> None:
        """Write the row of a trial, which says that it has ended."""
        self.trials.write(row["trial_id"], [row])

    def ended(self) -> dict[str, Ended]:
        """Return {trial id: how} of every trial that has ended."""
        table = self.trials.read(["trial_id", *Ended._fields])
        ids, *rest = (column.to_pylist() for column in table.columns)
        return dict(zip(ids, map(Ended, *rest), strict=True))

    def status(self, trial_id: str) -> str | None:
        """Return how one trial ended; None if it has not."""
        if own := self.trial(trial_id).ended():
            return own.status
        found = self.trials.read(["status"], {"trial_id": trial_id})["status"]
        return found[0].as_py() if len(found) else None

    def compact(self) -> int:
        """Merge the small files of trials that were trained to their ends; return how many.

        Readers and a running sweep go on meanwhile. A merged file appears first and the small ones go after, so that
        for a moment rows stand twice, which this package knows and other readers of the folder may see. Failed trials
        stay as they are: they may be run again.
        """
        small = [name for name in parquet.listed(self.files, "trials") if not parquet.is_merged(name)]
        ids = [parquet.trial_id(name) for name in small]
        with parquet.of_a_sweep(self.files, "trials"):
            ended = parquet.each(self.files, lambda trial_id: self.trial(trial_id).ended(), ids)
            done = {trial_id for trial_id, how in zip(ids, ended, strict=True) if how and how.status in schema.TRAINED}
        self.epochs.merge(done)
        self.trials.merge(done)
        return len(done)

    def trial(self, trial_id: str) -> TrialFiles:
        """Return what one trial has here beside its rows."""
        return TrialFiles(self.files, trial_id)

    def under_way(self) -> dict[str, tuple[Attempt, float]]:
        """Return {trial id: (its attempt, when that was written in seconds since 1970)} of trials that have begun.

        Those that have ended are not among them.
        """

        def look(trial_id: str) -> tuple[Attempt, float] | None:
            attempt, written = self.trial(trial_id).attempt(), self.trial(trial_id).said_at()
            return (attempt, written) if attempt and written else None  # None if it has just ended

        begun = [name.removesuffix(".json") for name in self.files.names("attempts")]
        return {name: found for name, found in zip(begun, parquet.each(self.files, look, begun), strict=True) if found}

    def logs(self) -> set[str]:
        """Return the ids of all trials that have a log: those that have begun."""
        return {name.removesuffix(".log") for name in self.files.names("logs") if name.endswith(".log")}

    def ray_log(self) -> Log:
        """Open the log of what Ray itself had to say, over all sweeps on this folder, for appending."""
        return self.files.append("ray.log")

    def tracked(self, tracker: str) -> StoredFile:
        """Return the place of what a tracker has logged the end of."""
        self.files.create(["trackers"])
        return StoredFile(self.files, f"trackers/{tracker}.json")

    @property
    def report(self) -> StoredFile:
        """The page of the run."""
        return StoredFile(self.files, "report.html")
