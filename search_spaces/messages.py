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


class _Handler(logging.Handler):
    def __init__(self, show: Callable[[str], object]):
        super().__init__()
        self._show = show

    def emit(self, record: logging.LogRecord) -> None:
        self._show(self.format(record))


@contextlib.contextmanager
def shown_by(show: Callable[[str], object]) -> Iterator[None]:
    """Hand every line to `show`, and to nobody else, for the length of the block."""
    before = log.handlers[:], log.level, log.propagate
    log.handlers, log.level, log.propagate = [_Handler(show)], logging.INFO, False
    try:
        yield
    finally:
        log.handlers, log.level, log.propagate = before
