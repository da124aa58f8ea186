"""What is wrong with a file of a run folder, and moving such files out of the way."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from results.store import parquet
from results.store.disk import Files
from results.store.folder import RunFolder
from search_spaces.text import visible

SET_ASIDE = "set-aside"
RESTORE = "restore it from a copy, or set it aside (--set-aside) and run the sweep again, which then trains it anew"
_MERGED = "it stands in a merged file: restore that from a copy"


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """What is wrong with one file.

    Attributes:
        kind: see `results.store.verify`.
        name: the file, within the run folder.
        what: expected and got, and what to do.
        aside: the files that `--set-aside` moves; none where that would not help.
    """

    kind: str
    name: str
    what: str
    aside: tuple[str, ...] = ()

    @classmethod
    def of_trial(cls, kind: str, trial_id: str, what: str, *names: str) -> Finding:
        """Describe a fault of one trial in the first of the files that have it.

        It can be set aside unless one of the files is merged: other trials would go with it.
        """
        is_merged = any(map(parquet.is_merged, names))
        do, aside = (_MERGED, ()) if is_merged else (RESTORE, names[:1])
        return cls(kind, names[0], f"{trial_id}: {what}; {do}", aside)

    def __str__(self) -> str:
        return visible(f"{self.kind}: {self.name}: {self.what}")


def set_aside(run: RunFolder, names: Iterable[str]) -> list[str]:
    """Move files into RUN/set-aside, deleting nothing, and return their new names.

    The row of a trial takes its epochs along, and the epochs take the row, so that a sweep trains the trial anew. A
    merged file goes alone.

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
    """Return the name, with a number if something was set aside under it before."""
    numbered = (f"{name}.{number}" for number in itertools.count(2))
    return next(one for one in itertools.chain([name], numbered) if not files.exists(one))
