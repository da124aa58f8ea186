"""A place for a checkpoint that needs no disk."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Memory:
    """A checkpoint slot in memory."""

    data: bytes | None = None
    writes: int = 0

    def read(self) -> bytes | None:
        return self.data

    def write(self, data: bytes) -> None:
        self.data = data
        self.writes += 1
