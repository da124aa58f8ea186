"""Lines for a person: what a command says while it works.

They go to one logger, `poolsweep`, so that a library says nothing, a command prints them, a sweep prints them beside
what it draws, and a worker prints them into its trial's log.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator

log = logging.getLogger("poolsweep")
log.setLevel(logging.INFO)  # once and for all: a logger remembers what it has passed over at another level


@contextlib.contextmanager
def shown_by(show: Callable[[str], object]) -> Iterator[None]:
    """Hand every line to `show`, and to nobody else, for the length of the block."""

    def emit(record: logging.LogRecord) -> None:
        show(handler.format(record))

    handler = logging.Handler()
    handler.emit = emit
    before = log.handlers[:], log.propagate
    log.handlers, log.propagate = [handler], False
    try:
        yield
    finally:
        log.handlers, log.propagate = before
