"""Where a run folder lives: the little that it asks of a disk, or of an object store (`results.store.s3`)."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import pyarrow as pa

from results.store.logs import Log

TEMPORARY = ".tmp-"  # a name that starts with a dot is passed over by every Parquet reader
T = TypeVar("T")


class Files(Protocol):
    """The files of a run folder, by their names in it, with `/` between the parts.

    A file is there wholly or not at all, whoever writes or is killed meanwhile. Whatever cannot be done raises OSError;
    FileNotFoundError says that there is no such file, and nothing else.
    """

    @property
    def where(self) -> str:
        """The absolute path or the URI, which finds the same files in any other process."""
        ...

    @property
    def name(self) -> str:
        """The last part of it."""
        ...

    @property
    def on_disk(self) -> bool: ...

    @property
    def at_once(self) -> int:
        """How many files to read side by side."""
        ...

    def spell(self, name: str = "") -> str:
        """For people: the path or the URI of a file, without what is secret in it."""
        ...

    def create(self, folders: Sequence[str]) -> None:
        """Makes what has to be there before the first file is; it may be there."""
        ...

    def discard_if_empty(self) -> None:
        """Takes away what `create` made, if there is nothing in it."""
        ...

    def read(self, name: str) -> bytes: ...

    def scan(self, name: str, read: Callable[[pa.NativeFile], T]) -> T:
        """What `read` makes of a file that may be large, of which it takes a part. It may be called again."""
        ...

    def write(self, name: str, data: bytes | pa.Buffer) -> None:
        """Into a folder that was made."""
        ...

    def append(self, name: str) -> Log:
        """A log, open for appending to what it has."""
        ...

    def log(self, name: str) -> bytes | None:
        """What a log has, with what a writer that was killed on this machine may have left of it; None if nothing."""
        ...

    def remove(self, name: str) -> None:
        """It may be missing."""
        ...

    def exists(self, name: str) -> bool: ...

    def is_folder(self, name: str) -> bool: ...

    def names(self, folder: str) -> list[str]:
        """The files in a folder, in order, without temporary ones and folders; none where there is no such folder."""
        ...

    def modified(self, name: str) -> float | None:
        """When it was written, in seconds since 1970; None if there is none."""
        ...

    def leftovers(self, older_s: float) -> list[str]:
        """Temporary files that are older than that: their writers were killed."""
        ...


class Disk:
    """A folder on a disk that this machine sees."""

    on_disk = True
    at_once = min(8, os.cpu_count() or 1)  # pyarrow lets go of the interpreter lock

    def __init__(self, path: Path):
        self.path = path.resolve()

    @property
    def where(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        return self.path.name

    def spell(self, name: str = "") -> str:
        path = self.path / name
        with contextlib.suppress(ValueError):
            return str(path.relative_to(Path.cwd()))
        return str(path)

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

    def log(self, name: str) -> bytes | None:
        try:
            return self.read(name)
        except FileNotFoundError:
            return None

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

    def leftovers(self, older_s: float) -> list[str]:
        before = time.time() - older_s
        names = [path.relative_to(self.path).as_posix() for path in self.path.glob(f"**/{TEMPORARY}*")]
        return sorted(name for name in names if (self.modified(name) or before) < before)
