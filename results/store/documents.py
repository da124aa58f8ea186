"""The files of a run folder that hold one value each, and the forms in which they are read.

Anybody may have written them, so each is validated when it is read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import yaml

from results.store.disk import Files
from results.store.s3 import StoreError
from search_spaces import strict_yaml
from search_spaces.equivalence import Equivalence
from search_spaces.errors import RequestError
from search_spaces.grid import Grid
from search_spaces.pool import Pool, StoredPool
from search_spaces.validation import Form, Line, Number, validate

T = TypeVar("T")
Submissions = Mapping[str, tuple[Pool, str]]  # {name of a candidate: (the entry, when it was submitted)}


class Document(Generic[T]):
    """A file that holds one value.

    Args:
        files: of the run folder.
        name: of the file.
        decode: the value of a text; a ValueError or a YAMLError where it has none.
        encode: its inverse.
        missing: the value where there is no file.
    """

    def __init__(
        self, files: Files, name: str, decode: Callable[[str], T], encode: Callable[[T], str], missing: Callable[[], T]
    ):
        self.name = name
        self._files, self._decode, self._encode, self._missing = files, decode, encode, missing

    def read(self) -> T:
        """Return the value.

        Raises:
            RequestError: the file is not what a sweep wrote.
        """
        try:
            return self._decode(self._files.read(self.name).decode())
        except FileNotFoundError:
            return self._missing()
        except StoreError:
            raise
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            raise RequestError.of(f"{self._files.spell(self.name)} is not what a sweep wrote: {error}") from None

    def write(self, value: T) -> None:
        self._files.write(self.name, self._encode(value).encode())


def space(files: Files) -> Document[Grid | None]:
    """Return the document with the trials of the newest sweep; its value is None before the first."""

    def encode(grid: Grid | None) -> str:
        return strict_yaml.dump(grid.to_dict() if grid else None)

    return Document(files, "space.yaml", lambda text: Grid.from_dict(strict_yaml.load(text)), encode, lambda: None)


def pools(files: Files) -> Document[list[Pool]]:
    """Return the document with every pool that was ever asked for, all revisions, under its newest label."""

    def encode(pools: list[Pool]) -> Any:
        return [pool.to_dict() for pool in pools]

    return _json(files, "pools.json", lambda data: validate(list[StoredPool], data), encode, list)


class _Submission(Form):
    pool: StoredPool
    when: Line


def submissions(files: Files) -> Document[Submissions]:
    """Return the document that says which revision of a candidate is its entry."""

    def decode(data: Any) -> Submissions:
        return {name: (entry.pool, entry.when) for name, entry in validate(dict[Line, _Submission], data).items()}

    def encode(entries: Submissions) -> Any:
        return {name: {"pool": pool.to_dict(), "when": when} for name, (pool, when) in entries.items()}

    return _json(files, "submitted.json", decode, encode, dict)


class _Topup(Form):
    target: Number
    seeds: list[int]


def topups(files: Files) -> Document[dict[str, Any]]:
    """Return the document that says which seeds were added after looking: {arch-dataset: {target, seeds}}."""
    return _checked(files, "topups.json", dict[Line, _Topup])


class _Measurement(Form):
    size: int
    start_s: Number
    epoch_s: Number
    images_per_s: Number
    memory_mb: Number | None = None


def pack_sizes(files: Files) -> Document[dict[str, Any]]:
    """Return the document with what was measured of training side by side: {what and where: measurements}."""
    return _checked(files, "packs.json", dict[Line, list[_Measurement]])


class _Checks(Form):
    same_function: list[Equivalence]


def equivalences(files: Files) -> Document[Sequence[Equivalence]]:
    """Return the document that says which pools of the newest sweep start as one function, by architecture."""

    def encode(found: Sequence[Equivalence]) -> Any:
        return {"same_function": [one.to_dict() for one in found]}

    return _json(files, "checks.json", lambda data: validate(_Checks, data).same_function, encode, list)


def _checked(files: Files, name: str, kind: type) -> Document[dict[str, Any]]:
    """Return a document whose value is the JSON as it stands, once it is seen to be of the type `kind`."""

    def decode(data: Any) -> dict[str, Any]:
        validate(kind, data)
        return data

    return _json(files, name, decode, lambda data: data, dict)


def _json(
    files: Files, name: str, decode: Callable[[Any], T], encode: Callable[[T], Any], missing: Callable[[], T]
) -> Document[T]:
    return Document(
        files, name, lambda text: decode(json.loads(text)), lambda value: json.dumps(encode(value), indent=1), missing
    )
