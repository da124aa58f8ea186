"""What a command makes of what it was started with: its streams, and where it imports from.

Imports nothing that Python has not loaded before it, because where that would come from is decided here.
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
    """Once, before a command does anything else.

    Whatever stdout and stderr are, writing to them raises nothing afterwards: a pipe whose reader has gone, a disk that
    is full, a terminal that was closed, none at all, an encoding that lacks a character. No sweep of days ends for it.
    """
    _import_nothing_from_here()
    for number in range(3):
        _open_if_closed(number)
    codecs.register_error("spelled", _spell)
    sys.stdout = sys.__stdout__ = _forgiving(sys.stdout, 1)
    sys.stderr = sys.__stderr__ = _forgiving(sys.stderr, 2)


# Where it imports from


def named_path() -> list[str]:
    """The folders of $PYTHONPATH that are folders wherever one stands.

    An empty entry, as `$PYTHONPATH:/more` has where nothing was before, is the working directory, and so is `.`: a file
    there that is called random.py would be imported for Python's own. Whoever means it gives its whole path.
    """
    entries = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    return [os.path.abspath(each) for each in entries if os.path.isabs(each) or not _is_here(each)]  # noqa: PTH100, PTH117


def _is_here(folder: str) -> bool:
    try:
        return os.path.samefile(folder, os.curdir)  # noqa: PTH121
    except OSError:
        return False


def _import_nothing_from_here() -> None:
    """Neither in this process nor, by Python's -P, in those that it starts."""
    named = named_path()
    os.environ |= {"PYTHONPATH": os.pathsep.join(named), "PYTHONSAFEPATH": "1"}
    own = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120
    sys.path[:] = [each for each in sys.path if each in (own, *named) or not _is_here(each or os.curdir)]


# Its streams


def unread() -> bool:
    """Whether whoever read stdout has gone: `| head` has had enough."""
    return isinstance(_lost(), BrokenPipeError)


def unwritten() -> OSError | None:
    """What kept stdout from being written, if anything did, for a command whose result it is: a disk that is full."""
    error = _lost()
    return None if isinstance(error, BrokenPipeError) else error


def _lost() -> OSError | None:
    sys.stdout.flush()
    return getattr(getattr(getattr(sys.stdout, "buffer", None), "raw", None), "lost", None)


def _open_if_closed(number: int) -> None:
    """Else the next file that is opened has this number, and gets what is printed."""
    try:
        os.fstat(number)
    except OSError:
        os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest number that is free


def _forgiving(stream: "Any", number: int) -> io.TextIOWrapper:
    """A stream that drops what it cannot write, and spells out what its encoding lacks."""
    if stream is not None:
        stream.flush()
    at_once = bool(stream and stream.write_through)
    by_line = number == 2 or bool(stream and stream.line_buffering)
    encoding = stream.encoding if stream else "utf-8"
    buffer = io.BufferedWriter(_Dropping(number))
    return io.TextIOWrapper(buffer, encoding, "spelled", line_buffering=by_line, write_through=at_once)


class _Dropping(io.FileIO):
    """A file that takes all that it is given.

    Attributes:
        lost: why the last that it was given could not be written.
    """

    def __init__(self, number: int):
        super().__init__(number, "wb", closefd=False)
        self.lost: OSError | None = None

    def write(self, data: "ReadableBuffer", /) -> int:
        import select  # not loaded by Python before

        try:
            while (written := super().write(data)) is None:  # whoever else has it open has made it non-blocking
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
