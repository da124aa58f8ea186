"""What one trial has in the run folder beside its rows in the tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from results.store import parquet
from results.store.attempt import Attempt
from results.store.disk import Files
from results.store.logs import Log
from search_spaces.validation import from_json, to_json


class Ended(NamedTuple):
    """How a trial ended, under what, at which attempt; None for one that the gate refused."""

    status: str
    recipe: str
    protocol: int
    attempt: int | None


@dataclass(frozen=True, slots=True)
class StoredFile:
    """The place of a file that may not be there, such as a checkpoint (`trainer.checkpoint.Slot`)."""

    files: Files
    name: str

    def __str__(self) -> str:
        """Return its path or its URI, for people."""
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


class TrialFiles:
    """The files of one trial.

    Attributes:
        checkpoint: to resume from.
        weights: its final ones, a state_dict as `torch.save` writes it; there before its row is.
    """

    def __init__(self, files: Files, trial_id: str):
        self._files = files
        self._row = f"trials/{trial_id}.parquet"
        self._attempt = f"attempts/{trial_id}.json"
        self._log = f"logs/{trial_id}.log"
        self._picture = f"cam/{trial_id}.png"
        self.checkpoint = StoredFile(files, f"checkpoints/{trial_id}.pt")
        self.weights = StoredFile(files, f"weights/{trial_id}.pt")

    def ended(self) -> Ended | None:
        """Return how the trial ended, by its own file alone: whatever a sweep that runs now has written, in one look.

        None, too, for a trial whose row stands in a merged file (`RunFolder.ended`).
        """
        row = parquet.first_row(self._files, self._row, Ended._fields)
        return None if row is None else Ended(**row)

    def attempt(self) -> Attempt | None:
        """Return how far the trial has come; None if it has not begun, or has ended."""
        try:
            return from_json(Attempt, self._files.read(self._attempt))
        except FileNotFoundError:
            return None

    def write_attempt(self, attempt: Attempt) -> None:
        self._files.write(self._attempt, to_json(attempt))

    def end_attempt(self) -> None:
        """Say that the trial is not under way any more; its row is written before."""
        self._files.remove(self._attempt)

    def said_at(self) -> float | None:
        """Return when the attempt was written, in seconds since 1970."""
        return self._files.modified(self._attempt)

    def open_log(self) -> Log:
        """Open the log for appending: a second attempt adds to what the first one left."""
        return self._files.append(self._log)

    def has_log(self) -> bool:
        """Return whether the trial has ever begun."""
        return self._files.exists(self._log)

    def log_text(self) -> str | None:
        """Return what the trial's attempts have printed; None if there was none. In an object store: what was saved."""
        found = StoredFile(self._files, self._log).read()
        return None if found is None else found.decode(errors="replace")

    def log_place(self) -> str:
        """Return the path or the URI of the log, for people."""
        return self._files.spell(self._log)

    def picture(self) -> StoredFile:
        """Return the place of the trial's class activation maps, in a folder that is made."""
        self._files.create(["cam"])
        return StoredFile(self._files, self._picture)
