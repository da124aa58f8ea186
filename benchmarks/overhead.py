"""What orchestration costs: seconds a trial of everything but training, beside raw Ray Tune.

    python -m benchmarks.overhead [--trials 10 100 1000 5000] [--fresh-actors 6] [--output FILE]

Ours is the real scheduler and the real worker, with its log, its epochs and its row in Parquet, around a trial that
trains nothing and has five epochs: of built-in pools, and of 20 users' files in turn, each of which needs a process
of its own. Raw Tune is a function that reports once: with reused actors and no loggers, and as
it comes (a fresh actor a trial, its loggers on), with torch imported in the function as any trainer would. Each has
a process and a Ray of its own. `to first trial` is from the moment at which Ray is asked to start; `longest pause` is
the most that the driver did not hear Ctrl-C, or show progress, because it was busy.
"""

from __future__ import annotations

import io
import logging
import operator
import os
import resource
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import common
from benchmarks.common import Row
from search_spaces import pool
from search_spaces.grid import BASELINE, Entry, Grid, Pair
from search_spaces.recipe import Recipe

EPOCHS = 5
OURS, REUSED, FRESH = "this project", "raw Tune, reused actors, no loggers", "raw Tune, as it comes"
IN_TURN, FILES = "this project, 20 files in turn", 20
USERS = "from torch import nn\nclass CustomPool(nn.Module):\n    def forward(self, x): return {} * x.mean((2, 3))\n"
MEASURE = "import sys, json; from benchmarks.overhead import measure; print(json.dumps(measure(*sys.argv[1:])))"
COLUMNS = {
    "": "{what}",
    "trials": "{trials:,}",
    "start, s": "{start_s:.1f}",
    "to first trial, s": "{first_s:.1f}",
    "longest pause, s": "{pause_s:.1f}",
    "s a trial": "{seconds_per_trial:.4f}",
    "driver, MiB": "{driver_mib:.0f}",
}


def main() -> None:
    parser = common.options(__doc__)
    parser.add_argument("--trials", type=int, nargs="+", default=[10, 100, 1000, 5000])
    parser.add_argument("--fresh-actors", type=int, default=6, help="trials of raw Tune as it comes; seconds each")
    args = parser.parse_args()
    todo = [(what, count) for what in (OURS, IN_TURN, REUSED) for count in args.trials] + [(FRESH, args.fresh_actors)]
    rows = []
    for what, count in todo:
        if count:
            with tempfile.TemporaryDirectory() as home:  # by default Tune's results go to ~/ray_results
                rows.append(common.in_a_process(MEASURE, what, str(count), HOME=home))
    common.show(COLUMNS, rows)
    common.save(args, "overhead", rows)


def measure(what: str, count: str) -> Row:
    trials = int(count)
    seconds = ours(trials, what == IN_TURN) if what in (OURS, IN_TURN) else raw_tune(trials, fresh=what == FRESH)
    mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"what": what, "trials": trials, **seconds, "driver_mib": mib}


def ours(trials: int, in_turn: bool) -> dict[str, float]:
    """Seconds of Ray's start, from there to the first trial's, of the driver's longest pause, and of a trial."""

    from orchestrator import environment

    environment.prepare("local")  # before Ray is imported

    from orchestrator import cluster, ray_tune
    from orchestrator.packs import group
    from orchestrator.record import Job
    from orchestrator.resources import Share, this_machine
    from orchestrator.shutdown import Shutdown
    from orchestrator.supervisor import Supervisor
    from results.status import Screen
    from results.store.folder import RunFolder
    from results.store.lease import Lease
    from trainer import data

    steps: list[float] = []

    class Timed(Supervisor):
        def step(self) -> None:
            steps.append(time.perf_counter())
            super().step()

    with tempfile.TemporaryDirectory() as folder:
        entries = tuple(
            Entry(each, BASELINE) for each in (_files(Path(folder)) if in_turn else pool.expand("gem(p=[1, 3])"))
        )
        seeds = tuple(range(max(1, trials // len(entries))))
        grid = Grid("overhead", entries, (Pair("resnet20", "digits"),), seeds, Recipe(epochs=EPOCHS))
        todo, loaded = list(grid), {"digits": data.load("digits", Path())}
        run = RunFolder(Path(folder) / "run")
        run.create()
        job = Job(run.where, checkpoint_every=10)
        asked = datetime.now(UTC)
        with run.ray_log() as log, cluster.connected("local", this_machine(gpus=0), log):
            start_s = (datetime.now(UTC) - asked).total_seconds()
            began = time.perf_counter()
            run.write_grid(grid)
            with Lease(run) as lease, Screen(run, Console(file=io.StringIO())) as screen, screen.follow(0.5):
                supervisor, shutdown = Timed(job, lease), Shutdown(lease.ask_to_stop)
                packs = group(todo, lambda _: 1)
                ray_tune.run(grid, packs, loaded, job, Share(1, 0), 0, supervisor, shutdown, _idle)
            seconds = time.perf_counter() - began
        ended = run.ended()
        first = min(run.trials.read(["started_at"])["started_at"].to_pylist())
        if len(ended) != len(todo):
            raise RuntimeError(f"of {len(todo)} trials {len(ended)} have ended")
    pause_s = max(map(operator.sub, steps[1:], steps))
    first_s = (first - asked).total_seconds()
    return {"start_s": start_s, "first_s": first_s, "pause_s": pause_s, "seconds_per_trial": seconds / len(todo)}


def _files(folder: Path) -> list[pool.Pool]:
    for number in range(FILES):
        (folder / f"mine{number}.py").write_text(USERS.format(number + 1), encoding="utf-8")
    return [pool.expand(str(folder / f"mine{number}.py"))[0] for number in range(FILES)]


def _idle(*arguments: Any) -> None:
    from benchmarks.idle import idle_pack  # on the worker: the driver does without torch

    idle_pack(*arguments)


def raw_tune(trials: int, fresh: bool) -> dict[str, float]:
    """Return seconds of Ray's start and of a trial."""
    if not fresh:
        os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    started = time.perf_counter()
    import ray
    from ray import tune

    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    start_s = time.perf_counter() - started

    def trainable(_: dict[str, Any]) -> None:
        import torch

        tune.report({"accuracy": float(torch.rand(()))})

    began = time.perf_counter()
    tune.Tuner(
        trainable,
        param_space={"seed": tune.grid_search(list(range(trials)))},
        tune_config=tune.TuneConfig(reuse_actors=not fresh),
        run_config=tune.RunConfig(verbose=0),
    ).fit()
    seconds = time.perf_counter() - began
    ray.shutdown()
    return {"start_s": start_s, "seconds_per_trial": seconds / trials}


if __name__ == "__main__":
    main()
