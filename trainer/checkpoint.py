"""A trial's state at an epoch boundary, as bytes. Where they are kept is the caller's business."""

from __future__ import annotations

import io
from typing import Any, Protocol

import torch


class Slot(Protocol):
    """A place that holds one trial's newest checkpoint, or none."""

    def read(self) -> bytes | None: ...

    def write(self, data: bytes) -> None:
        """Replaces what was there, wholly or not at all."""
        ...


class CheckpointError(Exception):
    """Bytes that are no checkpoint of this trial; the message says why."""


def encode(trial_id: str, state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save({"trial": trial_id, **state}, buffer)
    return buffer.getvalue()


def decode(trial_id: str, data: bytes) -> dict[str, Any]:
    """The state that `encode` was given, its tensors on the CPU. Never unpickles code (`weights_only`).

    Raises:
        CheckpointError: it is cut off, or no checkpoint at all, or another trial's.
    """
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        found = state.pop("trial")
    except Exception as error:  # a cut or overwritten file raises whatever its bytes happen to mean
        reason = (str(error).splitlines() or [""])[0]
        raise CheckpointError(f"it cannot be read ({type(error).__name__}: {reason})") from None
    if found != trial_id:
        raise CheckpointError(f"it belongs to {found}")
    return state
