"""A trial's log: a text file on a disk, or in an object store a local file that is uploaded."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from search_spaces import machine


class Log(io.TextIOWrapper):
    """A text file, open for appending, that takes any text and is flushed line by line.

    A lone surrogate is written as an escape: what a candidate prints must not raise. `fileno()` is that of a real file,
    so that `faulthandler` can write into it.
    """

    def __init__(self, file: BinaryIO):
        super().__init__(file, encoding="utf-8", errors="backslashreplace", line_buffering=True)

    def save(self) -> None:
        """Make visible what was written so far."""
        self.flush()


class UploadedLog(Log):
    """A log in an object store, which cannot append: the file is kept on this machine and uploaded whole.

    The next writer on this machine finds what a killed one did not upload.

    Args:
        uploaded: the present content of the object at the URI `where`.
        upload: replaces it.
    """

    def __init__(self, where: str, uploaded: bytes, upload: Callable[[bytes], None]):
        self._path = _kept_at(where)
        super().__init__(_opened(self._path, _continued(self._path, uploaded)))
        self._upload = upload
        self._uploaded = len(uploaded)

    def save(self) -> None:
        super().save()
        size = os.fstat(self.fileno()).st_size  # faulthandler passes Python's buffer by
        if size != self._uploaded:
            self._upload(os.pread(self.fileno(), size, 0))
            self._uploaded = size

    def close(self) -> None:
        if self.closed:
            return
        try:
            self.save()
            with contextlib.suppress(OSError):  # of a cache that cannot be written
                self._path.unlink()
        finally:
            super().close()


def _continued(path: Path, uploaded: bytes) -> bytes:
    """Return what was uploaded, or this machine's copy if that continues it."""
    try:
        kept = path.read_bytes()
    except OSError:
        return uploaded
    return kept if kept.startswith(uploaded) else uploaded


def _kept_at(where: str) -> Path:
    return machine.cache() / "logs" / f"{hashlib.sha256(where.encode()).hexdigest()[:32]}.log"


def _opened(path: Path, content: bytes) -> BinaryIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # a process that still writes into it keeps its own file
        path.write_bytes(content)
        return path.open("ab+")
    except OSError:  # a cache that is full, or cannot be written
        file = tempfile.TemporaryFile("ab+")  # noqa: SIM115 - the log that is made of it closes it
        file.write(content)
        file.flush()
        return file
