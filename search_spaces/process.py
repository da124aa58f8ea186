"""Prepare a command's process: its streams, and the folders that it imports from.

This module imports only what Python has already loaded, because it decides where everything else is imported from.
"""

import codecs
import io
import os
import sys

TYPE_CHECKING = False  # as typing's, for pyright
if TYPE_CHECKING:
    from typing import Any

    from _typeshed import ReadableBuffer


def prepare() -> None:
    """Prepare the process, once, before a command does anything else.

    Afterwards no write to stdout or stderr raises an error, be the pipe's reader gone, the disk full, the terminal
    closed, or a character not in the encoding. A sweep of days must not end for that.
    """
    _import_nothing_from_here()
    for number in range(3):
        _open_if_closed(number)
    codecs.register_error("spelled", _spell)
    sys.stdout = sys.__stdout__ = _forgiving(sys.stdout, 1)
    sys.stderr = sys.__stderr__ = _forgiving(sys.stderr, 2)


# Where it imports from


def named_path() -> list[str]:
    """Return the folders of $PYTHONPATH, but for the working directory.

    An empty entry means the working directory, as in `$PYTHONPATH:/more` where the variable was not set, and so does
    `.`: a file random.py there would be imported instead of Python's own. Give the whole path to mean that folder.
    """
    entries = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    return [os.path.abspath(each) for each in entries if os.path.isabs(each) or not _is_here(each)]  # noqa: PTH100, PTH117


def _is_here(folder: str) -> bool:
    try:
        return os.path.samefile(folder, os.curdir)  # noqa: PTH121
    except OSError:
        return False


def _import_nothing_from_here() -> None:
    """Take the working directory out of the path of this process and, by Python's -P, of those that it starts."""
    named = named_path()
    os.environ |= {"PYTHONPATH": os.pathsep.join(named), "PYTHONSAFEPATH": "1"}
    own = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120
    sys.path[:] = [each for each in sys.path if each in (own, *named) or not _is_here(each or os.curdir)]


# Its streams


def unread() -> bool:
    """Return whether the reader of stdout has gone, as `| head` has once it has its lines."""
    return isinstance(_lost(), BrokenPipeError)


def unwritten() -> OSError | None:
    """Return what kept stdout from being written, such as a full disk, for a command whose result it is."""
    error = _lost()
    return None if isinstance(error, BrokenPipeError) else error


def _lost() -> OSError | None:
    sys.stdout.flush()
    return getattr(getattr(getattr(sys.stdout, "buffer", None), "raw", None), "lost", None)


def _open_if_closed(number: int) -> None:
    """Open a closed descriptor on /dev/null, or the next file opened would get its number and what is printed."""
    try:
        os.fstat(number)
    except OSError:
        os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest number that is free


def _forgiving(stream: "Any", number: int) -> io.TextIOWrapper:
    """Return a stream that drops what it cannot write, and spells out what its encoding lacks."""
    stream = stream or io.TextIOWrapper(io.BytesIO(), "utf-8")  # it was closed
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Dropping(number)),
        stream.encoding,
        "spelled",
        line_buffering=number == 2 or stream.line_buffering,
        write_through=stream.write_through,
    )


class _Dropping(io.FileIO):
    """A file whose writes never fail; `lost` is why the last one would have."""

    def __init__(self, number: int):
        super().__init__(number, "wb", closefd=False)
        self.lost: OSError | None = None

    def write(self, data: "ReadableBuffer", /) -> int:
        import select  # not loaded by Python before

        try:
            while (written := super().write(data)) is None:  # another process that has it open has made it non-blocking
                select.select([], [self], [])
        except OSError as error:
            self.lost = error
            return memoryview(data).nbytes
        return written


_SPELLED = {"±": "+-", "▲": "^", "▼": "v", "≡": "=", "⚑": "!", "×": "x", "−": "-", "…": "...", "─": "-", "│": "|"}


def _spell(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    spelled = (_SPELLED.get(each) or each.encode("ascii", "backslashreplace").decode() for each in lacking)
    return "".join(spelled), error.end
