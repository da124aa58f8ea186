"""Lines for a person: what a command says while it works.

They go to one logger, `poolsweep`, so that a library says nothing, a command prints them, a sweep prints them beside
what it draws, and a worker prints them into its trial's log.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator

log = logging.getLogger("poolsweep")


@contextlib.contextmanager
def shown_by(show: Callable[[str], object]) -> Iterator[None]:
    """Hand every line to `show`, and to nobody else, for the length of the block."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            show(record.getMessage())

    before, level = (log.handlers[:], log.propagate), log.level
    log.handlers, log.propagate = [Handler()], False
    log.setLevel(logging.INFO)  # by this method alone: a logger remembers what it has passed over at another level
    try:
        yield
    finally:
        log.handlers, log.propagate = before
        log.setLevel(level)
