"""A device program that trains nothing, for what is measured around it."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from torch import nn

from search_spaces.trial import Trial
from trainer.outcome import Epoch


class IdleProgram:
    """Answers like `trainer.train.Program`, at once."""

    def __init__(self, trial: Trial, *_: Any, **__: Any):
        self.trial = trial
        self.network = nn.Module()
        self.network.pool = nn.Identity()
        self.test_images = 1000

    def run(self, epoch: int) -> Generator[None, None, Epoch]:
        yield
        return Epoch(epoch, 1.0, 50.0, 1.0, 50.0, 0.1, 0.001, 1000.0)

    def collapsed(self, _: Any) -> bool:
        return False

    def state(self) -> dict[str, Any]:
        return {}


def idle_pack(pack: Any, data: Any, job: Any, heartbeat: Any = None) -> None:
    """`orchestrator.worker.run_pack` with idle programs."""
    from orchestrator.worker import run_pack

    make_program: Any = IdleProgram
    run_pack(pack, data, job, heartbeat, make_program)
