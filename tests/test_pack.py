"""Trials side by side: the same numbers as alone, and no fault that spreads."""

from __future__ import annotations

import dataclasses
import math
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from benchmarks.idle import idle_pack
from orchestrator import worker
from orchestrator.packs import GAIN, best, group, measured_sizes
from orchestrator.record import Job
from orchestrator.worker import DeviceLostError, measure, run_pack
from results.store import schema
from results.store.attempt import Attempt
from results.store.folder import RunFolder
from search_spaces import pool
from search_spaces.grid import BASELINE, Entry, Grid, Pair, Planned
from search_spaces.recipe import Recipe
from search_spaces.trial import Trial
from tests.compare import numbers
from tests.pool_files import noisy, written
from trainer import packs
from trainer.augment import Images
from trainer.data import Dataset
from trainer.packs import Measurement, take_turns
from trainer.train import Program, train

pytestmark = pytest.mark.usefixtures("nothing_collapses")  # trials of a few steps are no better than guessing
CPU = torch.device("cpu")
RECIPE = Recipe(epochs=2, batch_size=8, lr=0.02, train_samples=100, test_samples=40)  # 13 steps: turns are 8


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    specs = ["gap", "gem", "global_max", noisy(tmp_path), "avg_max"]
    entries = tuple(Entry(pool.expand(spec)[0], BASELINE) for spec in specs)
    return Grid("packs", entries, (Pair("resnet20", "digits"),), (1, 2), RECIPE)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    run = RunFolder(tmp_path / "run")
    run.create()
    return Job(run.where)


def alone(trial: Trial, data: Dataset) -> list[dict[str, float]]:
    return numbers(train(Program(trial, Images(data, CPU))))


def on_record(run: str, planned: Planned) -> list[dict[str, float]]:
    rows = pd.read_parquet(Path(run) / "epochs" / f"{planned.trial.id}.parquet")
    return rows[["epoch", "train_loss", "train_acc", "test_loss", "test_acc", "lr"]].to_dict("records")  # type: ignore


def statuses(job: Job, trials: Sequence[Planned]) -> list[str | None]:
    run = RunFolder(job.run)
    assert not run.under_way()
    return [run.status(planned.trial.id) for planned in trials]


def test_a_packs_trials_give_the_same_numbers_as_alone(grid: Grid, job: Job, digits: Dataset) -> None:
    """Pools that draw noise on the host among them: turns swap the generators."""
    trials = list(grid)
    run_pack(trials, digits, job)
    assert set(statuses(job, trials)) == {schema.COMPLETED}
    for planned in trials:
        assert on_record(job.run, planned) == alone(planned.trial, digits), str(planned.trial)


def test_rows_say_what_has_trained_them(grid: Grid, job: Job, digits: Dataset) -> None:
    """And so do an attempt and the epochs of a trial that has not ended."""
    planned, run = next(iter(grid)), RunFolder(job.run)
    job = dataclasses.replace(job, git_commit="c0ffee")

    attempts = list[Attempt | None]()

    def watched(*arguments: Any, **options: Any) -> Program:
        attempts.append(run.trial(planned.trial.id).attempt())
        return Program(*arguments, **options)

    run_pack([planned], digits, job, make_program=watched)
    (attempt,) = attempts
    assert attempt is not None
    assert (attempt.git_commit, attempt.kernels) == ("c0ffee", None)
    for table in (run.trials, run.epochs):
        rows = table.read(["git_commit", "kernels"]).to_pylist()
        assert rows == [{"git_commit": "c0ffee", "kernels": None}] * len(rows)
        assert rows


def test_turns_are_shorter_than_an_epoch(grid: Grid, digits: Dataset) -> None:
    """So the test above does interleave."""
    images = Images(digits, CPU)
    turns = Program(next(iter(grid)).trial, images).run(1)
    assert sum(1 for _ in turns) == 4  # the first step, 12 others in two turns, the evaluation


def test_a_trial_that_diverges_or_raises_leaves_and_the_others_are_not_disturbed(
    grid: Grid, job: Job, digits: Dataset, tmp_path: Path
) -> None:
    faults = {"raises": "raise ValueError('no more')", "diverges": "return x.mean((2, 3)) * float('nan')"}
    count = "self.calls += self.training\nif self.calls > 9:\n    "
    bad = tuple(
        Entry(pool.expand(written(tmp_path, name, f"{count}{fault}\nreturn x.mean((2, 3))", "self.calls = 0"))[0])
        for name, fault in faults.items()
    )
    mixed = dataclasses.replace(grid, entries=(grid.entries[0], *bad, grid.entries[3]), seeds=(1,))
    run_pack(list(mixed), digits, job)
    status = pd.read_parquet(Path(job.run) / "trials").set_index("pool")["status"].to_dict()
    assert status == {"gap": "completed", "raises": "failed", "diverges": "diverged", "noisy": "completed"}
    gap, raises, _, noisy = mixed
    for planned in (gap, noisy):
        assert on_record(job.run, planned) == alone(planned.trial, digits)
    log = (Path(job.run) / "logs" / f"{raises.trial.id}.log").read_text()
    assert "ValueError: no more" in log


class Tight:
    """Programs on a device with room for `room` of them."""

    def __init__(self, room: int):
        self.room, self.most = room, 0
        self._alive = weakref.WeakSet[Program]()

    def __call__(self, trial: Trial, images: Images, **options: Any) -> Program:
        if len(self._alive) == self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        program = Program(trial, images, **options)
        self._alive.add(program)
        self.most = max(self.most, len(self._alive))
        return program


@pytest.mark.parametrize("room", [1, pytest.param(3, marks=pytest.mark.soak)])
def test_without_memory_for_all_the_pack_is_split(grid: Grid, job: Job, digits: Dataset, room: int) -> None:
    trials = list(grid)[:5]
    tight = Tight(room)
    run_pack(trials, digits, job, make_program=tight)
    assert tight.most == room
    assert statuses(job, trials) == ["completed"] * 5
    assert on_record(job.run, trials[4]) == alone(trials[4].trial, digits)


def test_without_memory_for_one_it_fails(grid: Grid, job: Job, digits: Dataset) -> None:
    trials = list(grid)[:2]
    run_pack(trials, digits, job, make_program=Tight(0))
    assert statuses(job, trials) == ["failed"] * 2
    assert "out of memory" in RunFolder(job.run).trials.read(["error"])["error"][0].as_py()


@pytest.mark.soak
def test_out_of_memory_in_the_middle_goes_on_from_the_checkpoint(grid: Grid, job: Job, digits: Dataset) -> None:
    class Greedy(Program):
        calls = 0

        def run(self, epoch: int) -> Any:
            if epoch == 2 and self.trial == trials[1].trial:
                Greedy.calls += 1
                if Greedy.calls == 1:
                    raise torch.OutOfMemoryError("CUDA out of memory")
            return (yield from super().run(epoch))

    trials = list(grid)[2:5]
    run_pack(trials, digits, job, make_program=Greedy)
    assert statuses(job, trials) == ["completed"] * 3
    for planned in trials:
        assert on_record(job.run, planned) == alone(planned.trial, digits)
    log = (Path(job.run) / "logs" / f"{trials[1].trial.id}.log").read_text()
    assert "out of memory beside others" in log
    assert "resumed after epoch 1" in log


def test_a_lost_device_ends_the_process_not_the_trials(
    grid: Grid, job: Job, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Program):
        def run(self, epoch: int) -> Any:
            raise RuntimeError("an illegal memory access was encountered")

    def lost(device: torch.device) -> None:
        raise DeviceLostError

    monkeypatch.setattr("orchestrator.worker._raise_if_lost", lost)
    with pytest.raises(DeviceLostError):
        run_pack(list(grid)[:2], digits, job, make_program=Broken)
    assert not list((Path(job.run) / "trials").iterdir()), "nobody knows whose fault it was"


def test_what_has_ended_is_not_trained_again(grid: Grid, job: Job, digits: Dataset) -> None:
    trials = list(grid)[:3]
    run_pack(trials[:2], digits, job)
    before = {path: path.stat().st_mtime_ns for path in (Path(job.run) / "trials").iterdir()}
    run_pack(trials, digits, job)
    assert len(RunFolder(job.run).ended()) == 3
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_idle_programs_answer_all_that_a_trial_asks(grid: Grid, job: Job, digits: Dataset) -> None:
    """Else `python -m benchmarks.overhead` measures how fast trials fail."""
    idle_pack(list(grid)[:2], digits, job)
    assert statuses(job, list(grid)[:2]) == ["completed"] * 2


# Which trials make a pack


def places(packs: Sequence[Sequence[Planned]]) -> list[list[tuple[int, int, int]]]:
    return [[planned.place for planned in pack] for pack in packs]


@pytest.fixture
def two_pairs(grid: Grid) -> Grid:
    pairs = (Pair("resnet20", "digits"), Pair("vgg11bn", "digits"))
    return dataclasses.replace(grid, pairs=pairs, entries=grid.entries[:2], seeds=(1, 2, 3))


def test_packs_are_of_one_pair_seeds_outermost(two_pairs: Grid) -> None:
    packs = places(group(list(two_pairs), lambda _: 4))
    assert packs == [
        [(0, 0, 0), (1, 0, 0), (0, 0, 1)],
        [(0, 1, 0), (1, 1, 0), (0, 1, 1)],
        [(1, 0, 1), (0, 0, 2), (1, 0, 2)],
        [(1, 1, 1), (0, 1, 2), (1, 1, 2)],
    ]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("gpus", [1, 2, 7, 100])
def test_every_trial_is_in_one_pack(two_pairs: Grid, size: int, gpus: int) -> None:
    todo = list(two_pairs)
    packs = group(todo, lambda _: size, gpus)
    assert sorted(p.place for pack in packs for p in pack) == sorted(p.place for p in todo)
    assert all(len({(p.trial.arch, p.trial.dataset) for p in pack}) == 1 for pack in packs)
    assert max(map(len, packs)) <= min(size, math.ceil(len(todo) / gpus)), "a GPU has nothing to do"


@pytest.mark.parametrize("size", [1, 2, 8])
def test_no_pack_has_two_codes(two_pairs: Grid, tmp_path: Path, size: int) -> None:
    """The built-in pools are one, a file of a user's is one with all its parameters and classes."""
    text = "from torch import nn\nclass CustomPool(nn.Module):\n    def __init__(self, p=1): ...\n"
    (tmp_path / "mine.py").write_text(text + "class Other(CustomPool): ...\n")
    (tmp_path / "yours.py").write_text(text)
    specs = ("gap", "mine.py(p=2)", "gem", "yours.py", "mine.py:Other", "mine.py(p=3)")
    entries = tuple(Entry(one, BASELINE) for spec in specs for one in pool.expand(spec, root=tmp_path))
    todo = list(dataclasses.replace(two_pairs, entries=entries))
    packs = group(todo, lambda _: size)
    assert sorted(p.place for pack in packs for p in pack) == sorted(p.place for p in todo)
    names = {frozenset(p.trial.pool.name for p in pack) for pack in packs}
    of_one_code = ({"gap", "gem"}, {"mine", "mine.Other"}, {"yours"})
    assert all(any(found <= code for code in of_one_code) for found in names)
    if size == 8:
        assert {frozenset(code) for code in of_one_code} == names, "and as many as may share one"
    firsts = [min(p.place[2] for p in pack) for pack in packs]
    assert firsts == sorted(firsts), "seeds outermost"


def test_sizes_differ_by_pair(two_pairs: Grid) -> None:
    packs = group(list(two_pairs), lambda pair: 6 if pair[0] == "resnet20" else 2)
    assert sorted(map(len, packs)) == [2, 2, 2, 6]


def test_the_best_size_is_the_smallest_that_is_as_fast() -> None:
    found = [{"size": k, "images_per_s": rate} for k, rate in ((1, 100.0), (2, 180.0), (4, 200.0), (8, 202.0))]
    assert best(found) == 4
    assert best(found[:1]) == 1
    assert best([]) == 1


@pytest.mark.soak
def test_a_probe_stops_where_it_no_longer_pays(grid: Grid, digits: Dataset, job: Job) -> None:
    gpu, real = measure(list(grid), digits, job)
    assert gpu["gpu"] is None
    assert [row["size"] for row in real] == [1, 2, 4, 8, 16][: len(real)]
    assert all(row["images_per_s"] > 0 for row in real)
    assert all(row["memory_mb"] is None for row in real), "it is the GPU's"
    found = [Measurement(k, 1.0, 1.0, rate, None) for k, rate in ((1, 100.0), (2, 180.0), (4, 182.0), (8, 400.0))]
    assert [one.size for one in packs.while_it_pays(found, GAIN)] == [1, 2, 4]


@pytest.mark.soak
def test_a_probe_stops_where_no_more_fit(
    grid: Grid, digits: Dataset, job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(worker, "GAIN", 0.0)
    for room, sizes in ((5, [1, 2, 4]), (0, [])):
        monkeypatch.setattr(packs, "Program", Tight(room))
        assert [row["size"] for row in measure(list(grid), digits, job)[1]] == sizes
        assert f"no {8 if sizes else 1} side by side: CUDA out of memory" in capsys.readouterr().out


def test_each_pair_is_measured_with_trials_of_its_own(two_pairs: Grid, job: Job) -> None:
    asked: list[set[tuple[str, str]]] = []
    gpu = {"gpu": "a GPU", "gpu_memory_mb": 1.0, "free_mb": math.inf, "kernels": "2", "torch": "2.11"}

    def measure(pack: Sequence[Planned]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        asked.append({(planned.trial.arch, planned.trial.dataset) for planned in pack})
        fastest = 2 if pack[0].trial.arch == "resnet20" else 4
        return gpu, [dataclasses.asdict(Measurement(k, 1.0, 1.0, 100.0 * k, 10.0)) for k in (1, fastest)]

    for _ in range(2):
        found = measured_sizes(list(two_pairs), RunFolder(job.run), gpu, measure, [])
        assert found == {("resnet20", "digits"): 2, ("vgg11bn", "digits"): 4}
    assert asked == [{("resnet20", "digits")}, {("vgg11bn", "digits")}]


def test_taking_turns_runs_every_program(grid: Grid, digits: Dataset) -> None:
    images = Images(digits, CPU)
    programs = [Program(planned.trial, images) for planned in list(grid)[:3]]
    for program, epoch in zip(programs, take_turns(programs, 1), strict=True):
        other = Program(program.trial, images)
        assert numbers(take_turns([other], 1)) == numbers([epoch])
        pairs = zip(other.network.parameters(), program.network.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
