"""The interface to the files of a run folder, and a disk as one of its two implementations (see `results.store.s3`)."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import pyarrow as pa

from results.store.logs import Log
from search_spaces import machine

TEMPORARY = ".tmp-"  # a name that starts with a dot is passed over by every Parquet reader
T = TypeVar("T")


class Files(Protocol):
    """The files of a run folder, by their names in it, with `/` between the parts.

    A file is there wholly or not at all, even if its writer is killed. Every failure is an OSError; FileNotFoundError
    always means that there is no such file. Where folders are not made and writers leave nothing behind, as in a store
    of objects, the methods for these do nothing.

    Attributes:
        where: the absolute path or the URI, which finds the same files from any process.
        name: the last part of it.
        at_once: how many files to read side by side.
    """

    where: str
    name: str
    on_disk: bool
    at_once: int

    def spell(self, name: str = "") -> str:
        """Return the path or the URI of a file for people, without secrets."""
        ...

    def create(self, folders: Sequence[str]) -> None:
        """Make folders, before the first file; they may exist."""

    def discard_if_empty(self) -> None:
        """Remove what `create` made, if it is empty."""

    def read(self, name: str) -> bytes: ...

    def scan(self, name: str, read: Callable[[pa.NativeFile], T]) -> T:
        """Return what `read` makes of parts of a file that may be large. It may be called twice."""
        ...

    def write(self, name: str, data: bytes | pa.Buffer) -> None:
        """Write a file into a folder that exists."""
        ...

    def append(self, name: str) -> Log:
        """Open a log for appending."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file, which may be missing."""
        ...

    def exists(self, name: str) -> bool: ...

    def is_folder(self, name: str) -> bool: ...

    def names(self, folder: str) -> list[str]:
        """List the files in a folder, sorted, without temporary files and folders; none if there is no such folder."""
        ...

    def modified(self, name: str) -> float | None:
        """Return when a file was written, in seconds since 1970; None if there is none."""
        ...

    def leftovers(self) -> list[str]:
        """List temporary files: their writers write them now, or were killed."""
        return []


class Disk(Files):
    """A folder on a disk that this machine sees."""

    on_disk = True
    at_once = min(8, machine.cores())  # pyarrow lets go of the interpreter lock

    def __init__(self, path: Path):
        self.path = path.resolve()
        self.where, self.name = str(self.path), self.path.name

    def spell(self, name: str = "") -> str:
        path = self.path / name
        return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)

    def create(self, folders: Sequence[str]) -> None:
        for folder in folders:
            (self.path / folder).mkdir(parents=True, exist_ok=True)

    def discard_if_empty(self) -> None:
        with contextlib.suppress(OSError):  # of the first folder that has something in it
            for folder in (*self.path.iterdir(), self.path):
                folder.rmdir()

    def read(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except NotADirectoryError as error:  # a file is where a folder above it should be
            raise FileNotFoundError(*error.args) from None

    def scan(self, name: str, read: Callable[[pa.NativeFile], T]) -> T:
        with pa.OSFile(str(self.path / name)) as file:
            return read(file)

    def write(self, name: str, data: bytes | pa.Buffer) -> None:
        path = self.path / name
        # Without its name, which may be as long as names can be. No folder is made here: where a disk is mounted no
        # more, what is written would be lost behind it.
        beside = path.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
        try:
            with beside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)

    def append(self, name: str) -> Log:
        return Log((self.path / name).open("ab"))

    def remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def exists(self, name: str) -> bool:
        return (self.path / name).is_file()

    def is_folder(self, name: str) -> bool:
        return (self.path / name).is_dir()

    def names(self, folder: str) -> list[str]:
        try:
            with os.scandir(self.path / folder) as found:
                return sorted(one.name for one in found if not one.name.startswith(".") and one.is_file())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def modified(self, name: str) -> float | None:
        try:
            return (self.path / name).stat().st_mtime
        except FileNotFoundError:
            return None

    def leftovers(self) -> list[str]:
        return sorted(path.relative_to(self.path).as_posix() for path in self.path.glob(f"**/{TEMPORARY}*"))
