"""Trials that are killed and run again, without Ray: a child after the other, forked from a process that has torch.

    python -m tests.kills every FOLDER              killed before each change that one trial makes to the run folder
    python -m tests.kills random FOLDER [--seed N] [--kills N]      killed at instants that are drawn

A process of its own, for none that has computed may be forked: torch's threads don't come along. What it saw at every
death is printed as JSON (`Campaign`), and `tests/test_kills.py` makes of it what it has to be.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import select
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torchvision.models  # noqa: F401 - here, so that no child has to: half of what it does

from orchestrator.record import Job
from orchestrator.worker import run_pack
from results.store import schema
from results.store.folder import RunFolder
from search_spaces import chance, pool
from search_spaces.grid import BASELINE, Entry, Grid, Pair
from search_spaces.recipe import Recipe
from tests import compare
from trainer import checkpoint, data
from trainer.data import Dataset

RECIPE = Recipe(epochs=3, batch_size=8, lr=0.02, train_samples=16, test_samples=8)  # 0.1 s
POOLS = ("gap", "stochastic")  # the second draws numbers of its own
SUMMARY = ["trial_id", "status", "best_test_acc", "best_epoch", "final_test_acc", "final_test_loss", "final_train_loss"]
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.truncate", "os.rmdir", "os.link"}


@dataclass
class Death:
    """What stood in a run folder when a process was killed.

    Attributes:
        folder: its name.
        ended: {trial id: inode, time and contents of its row's file}, of those that had ended.
        covered: {trial id: the epochs in its checkpoint}.
    """

    folder: str
    ended: dict[str, list[int | str]]
    covered: dict[str, list[dict[str, Any]]]


@dataclass
class Campaign:
    """Folders, `undisturbed` and others, in which the same trials ran to their end, and how often they were killed."""

    deaths: list[Death] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("campaign", choices=("every", "random"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=100)
    args = parser.parse_args()
    torch.set_num_threads(1)
    digits = data.load("digits", Path("unused"))
    with mock.patch.object(chance, "most_hits", return_value=-1):  # only trials that complete leave weights to be lost
        campaign = (
            every(args.folder, digits)
            if args.campaign == "every"
            else at_random(args.folder, digits, random.Random(args.seed), args.kills)  # noqa: S311
        )
    print(json.dumps(dataclasses.asdict(campaign)))


def grid_of(seeds: int) -> Grid:
    entries = tuple(Entry(pool.expand(name)[0], BASELINE) for name in POOLS)
    return Grid("kills", entries, (Pair("resnet20", "digits"),), tuple(range(seeds)), RECIPE)


def every(folder: Path, digits: Dataset) -> Campaign:
    """One trial has ended; the other is killed before its first change, its second, ... until there are no more."""
    grid = grid_of(seeds=1)
    first = dataclasses.replace(grid, entries=grid.entries[:1])
    await_end(forked(lambda: sweep(folder / "first", first, digits)))
    shutil.copytree(folder / "first", folder / "undisturbed")
    await_end(forked(lambda: sweep(folder / "undisturbed", grid, digits)))
    campaign = Campaign()
    for number in range(1, 1000):
        run = Path(shutil.copytree(folder / "first", folder / f"killed-at-{number}"))
        if not was_killed(forked(lambda run=run, number=number: (die_at(number, run), sweep(run, grid, digits)))):
            return campaign
        campaign.deaths.append(seen(run))
        campaign.folders.append(run.name)
        await_end(forked(lambda run=run: sweep(run, grid, digits)))
    raise RuntimeError("a trial that changes a thousand files")


def at_random(folder: Path, digits: Dataset, draw: random.Random, kills: int) -> Campaign:
    """Folder after folder, each swept again and again until it is done, at most so long as an undisturbed sweep."""
    grid = grid_of(seeds=2)
    began = time.monotonic()
    await_end(forked(lambda: sweep(folder / "undisturbed", grid, digits)))
    takes_s = time.monotonic() - began
    campaign = Campaign()
    while len(campaign.deaths) < kills:
        run = folder / f"run-{len(campaign.folders)}"
        campaign.folders.append(run.name)
        side_by_side = draw.random() < 0.5
        while kill_after(forked(lambda: sweep(run, grid, digits, side_by_side)), draw.uniform(0, takes_s)):  # noqa: B023
            campaign.deaths.append(seen(run))
    return campaign


def sweep(folder: Path, grid: Grid, digits: Dataset, side_by_side: bool = False) -> None:
    """What a driver and its workers do to a run folder."""
    run = RunFolder(folder)
    run.create()
    run.tidy()
    run.write_grid(grid)
    ended = run.ended()
    todo = [planned for planned in grid if planned.trial.id not in ended]
    for pack in [todo] if side_by_side else [[planned] for planned in todo]:
        run_pack(pack, digits, Job(run.where, keep_weights=True))


def forked(work: Callable[[], Any]) -> int:
    """The pid of a child that does it and ends."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def die_at(number: int, folder: Path) -> None:
    """Kills this process before it changes something in a folder for the `number`th time."""
    changes = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal changes
        writes = event == "open" and bool((arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if (writes or event in CHANGES) and str(arguments[0]).startswith(f"{folder}/"):
            changes += 1
            if changes == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def kill_after(pid: int, seconds: float) -> bool:
    """Whether the child had not ended by itself before."""
    watched = os.pidfd_open(pid)
    try:
        if not select.select([watched], [], [], seconds)[0]:
            os.kill(pid, signal.SIGKILL)
    finally:
        os.close(watched)
    return was_killed(pid)


def was_killed(pid: int) -> bool:
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    if status:
        raise RuntimeError(f"a child ended by itself, with {os.waitstatus_to_exitcode(status)}; see above")
    return False


def await_end(pid: int) -> None:
    if was_killed(pid):
        raise RuntimeError("a child was killed by somebody else")


def seen(folder: Path) -> Death:
    run = RunFolder(folder)
    statuses = run.ended() if run.exists() else {}
    ended = {trial_id: identity(run, trial_id) for trial_id, one in statuses.items() if one.status in schema.TRAINED}
    covered = {}
    for path in (folder / "checkpoints").glob("[!.]*.pt"):
        covered[path.stem] = checkpoint.decode(path.stem, path.read_bytes())["history"]
    return Death(folder.name, ended, covered)


def identity(run: RunFolder, trial_id: str) -> list[int | str]:
    """By which a row's file is seen to have been written again, even with the same in it."""
    path = run.path / "trials" / f"{trial_id}.parquet"
    return [path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes().hex()]


def numbers(run: RunFolder) -> list[str]:
    """What a run folder has of its trials and epochs, but for how long they took and what trained them."""
    return sorted(map(repr, [*run.epochs.read(compare.TABLE).to_pylist(), *run.trials.read(SUMMARY).to_pylist()]))


if __name__ == "__main__":
    main()
