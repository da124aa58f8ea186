"""A trial's state at an epoch boundary, as bytes. Where they are kept is the caller's business."""

from __future__ import annotations

import hashlib
import io
from typing import Any, Protocol

import torch

from search_spaces.errors import first_line

DIGEST_BYTES = hashlib.sha256().digest_size


class Slot(Protocol):
    """A place that holds one trial's newest checkpoint, or none."""

    def read(self) -> bytes | None: ...

    def write(self, data: bytes) -> None:
        """Replace what was there, wholly or not at all."""
        ...


class CheckpointError(Exception):
    """Bytes that are no checkpoint of this trial; the message says why."""


def encode(trial_id: str, state: dict[str, Any]) -> bytes:
    """Return the SHA-256 of what `torch.save` makes of it, and that."""
    buffer = io.BytesIO()
    torch.save({"trial": trial_id, **state}, buffer)
    return hashlib.sha256(buffer.getbuffer()).digest() + buffer.getvalue()


def decode(trial_id: str, data: bytes) -> dict[str, Any]:
    """Return the state that `encode` was given, its tensors on the CPU. Never unpickle code (`weights_only`).

    Raises:
        CheckpointError: it is cut off, a bit of it has turned over, or it is no checkpoint at all, or another trial's.
    """
    digest, saved = data[:DIGEST_BYTES], data[DIGEST_BYTES:]
    if hashlib.sha256(saved).digest() != digest:  # torch.load does not notice a wrong bit in a weight
        raise CheckpointError("it is damaged: its checksum is not that of its contents")
    try:
        state = torch.load(io.BytesIO(saved), map_location="cpu", weights_only=True)
        found = state.pop("trial")
    except Exception as error:  # another program's file raises whatever its bytes happen to mean
        raise CheckpointError(f"it cannot be read ({type(error).__name__}: {first_line(error)})") from None
    if found != trial_id:
        raise CheckpointError(f"it belongs to {found}")
    return state
