"""One pack of `train` in a process of its own: whatever it breaks, it breaks for itself."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.rental import pieces, plan
from benchmarks.rental.settings import Settings
from orchestrator.record import Job
from orchestrator.worker import run_pack
from results.store.folder import RunFolder
from search_spaces.messages import shown_by
from trainer import data
from trainer.device.execution import default_device
from trainer.train import Program

STALL_S = 120.0  # without an epoch: the slowest is of some seconds


def main() -> None:
    settings, told = Settings.from_json(sys.argv[1]), json.loads(sys.argv[2])
    grid = plan.grid(settings)
    pack = [grid.at(place) for place in told["places"]]
    run = RunFolder(settings.run)
    with shown_by(print):
        dataset = data.load(pack[0].trial.dataset, Path(settings.data), download=False)
        job = Job(
            run.where,
            gpu=default_device().type == "cuda",
            checkpoint_every=10**6,  # at 60 s, as all are
            git_commit=pieces.commit(Path(settings.data).parent),
            stall_timeout=STALL_S,
            driver=told["token"],
        )
        run_pack(pack, dataset, job, make_program=Program if told["graphs"] else without_graphs)


def without_graphs(*args: Any, **settings: Any) -> Program:
    print("trains without CUDA graphs, since with them something has failed")
    return Program(*args, **settings, graphs=False)


if __name__ == "__main__":
    main()
