"""What needs a CUDA GPU: steps as graphs, packs on streams, memory, and a sweep. `python -m pytest tests/test_gpu.py`.

It imports Ray in no test but the one that needs it, so that it runs where there is none. What does not depend on the
device is tested on the CPU as well, by the same tests.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from orchestrator.record import Job
from orchestrator.worker import run_pack
from results.store.folder import RunFolder
from search_spaces import pool
from search_spaces.grid import BASELINE, Entry, Grid, Pair
from search_spaces.messages import shown_by
from search_spaces.recipe import Recipe
from search_spaces.trial import Trial
from tests.compare import numbers
from tests.memory import Memory
from tests.pool_files import written
from tests.test_pools import build, maps
from trainer.augment import Images
from trainer.data import Dataset
from trainer.device import graphs
from trainer.device.execution import set_matmul_precision
from trainer.outcome import Epoch
from trainer.packs import take_turns
from trainer.train import Program, train

pytestmark = pytest.mark.usefixtures("nothing_collapses")  # trials of a few steps are no better than guessing
Make = Callable[..., Trial]
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
DROPOUT = "return nn.functional.dropout(x.mean((2, 3)), 0.5)"
COUNTED = "self.calls = 0\nself.register_buffer('ema', torch.zeros(channels))"
RECIPE = Recipe(epochs=2, batch_size=8, lr=0.02, train_samples=100, test_samples=40)  # the last batch has 4


@pytest.fixture(params=[CPU, pytest.param(CUDA, marks=pytest.mark.gpu)], ids=str)
def device(request: pytest.FixtureRequest) -> torch.device:
    return request.param


@pytest.fixture
def deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels whose sums have an order: bit-equality can be asked of no others."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    """Four pools, one of which draws noise on the device."""
    specs = ["gap", "gem", "avg_max", written(tmp_path, "drop", DROPOUT)]
    entries = tuple(Entry(pool.expand(spec)[0], BASELINE) for spec in specs)
    return Grid("gpu", entries, (Pair("resnet20", "digits"),), (1,), RECIPE)


@pytest.fixture
def job(tmp_path: Path, device: torch.device) -> Job:
    run = RunFolder(tmp_path / "run")
    run.create()
    return Job(run.where, gpu=device.type == "cuda")


def histories(
    trials: Sequence[Trial], data: Dataset, device: torch.device, says: str = "", **options: Any
) -> list[list[Epoch]]:
    """Of trials that take turns, of which one says this, or none anything."""
    images, said = Images(data, device), list[str]()
    with shown_by(said.append):
        programs = [Program(trial, images, **options) for trial in trials]
    assert [says in line for line in said] == [True] * bool(says), said
    epochs = [take_turns(programs, number) for number in range(1, trials[0].recipe.epochs + 1)]
    return [list(history) for history in zip(*epochs, strict=True)]


# The device program


@pytest.mark.gpu
def test_a_gpu_trains_as_the_cpu_does(make_trial: Make, digits: Dataset) -> None:
    """Same start, same batches, so the same losses until rounding has grown."""
    trial = make_trial("gem", lr=0.01, epochs=2)
    ((cpu, *_),), ((gpu, *others),) = (histories([trial], digits, device) for device in (CPU, CUDA))
    assert gpu.train_loss == pytest.approx(cpu.train_loss, rel=1e-3)
    assert math.isfinite(others[-1].test_loss)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("arch", ["resnet20", "vgg11bn", "mobilenetv2"])
def test_graphs_train_as_eager_steps_do(
    deterministic: None, make_trial: Make, digits: Dataset, arch: str, precision: str
) -> None:
    trial = make_trial("gem", arch=arch, precision=precision)
    recorded, eager = (histories([trial], digits, CUDA, graphs=graphs)[0] for graphs in (True, False))
    assert numbers(recorded) == numbers(eager)


@pytest.mark.gpu
def test_precisions_differ_and_hardly(make_trial: Make, digits: Dataset) -> None:
    first = {
        precision: histories([make_trial("gap", precision=precision, epochs=1)], digits, CUDA)[0][0].train_loss
        for precision in ("fp32", "bf16", "tf32")
    }
    assert len(set(first.values())) == 3, first
    assert first["tf32"] == pytest.approx(first["fp32"], rel=1e-2)
    assert first["bf16"] == pytest.approx(first["fp32"], rel=5e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("arch", ["resnet20", "vgg11bn", "mobilenetv2"])
def test_a_pack_is_bit_equal_to_its_trials_alone(deterministic: None, grid: Grid, digits: Dataset, arch: str) -> None:
    trials = [dataclasses.replace(planned.trial, arch=arch) for planned in grid]
    for trial, history in zip(trials, histories(trials, digits, CUDA), strict=True):
        assert numbers(history) == numbers(histories([trial], digits, CUDA)[0]), str(trial)


@pytest.mark.gpu
def test_a_stopped_trial_goes_on_bit_equal(deterministic: None, grid: Grid, digits: Dataset) -> None:
    images = Images(digits, CUDA)
    for planned in list(grid)[1::2]:
        trial = dataclasses.replace(planned.trial, recipe=dataclasses.replace(RECIPE, epochs=4))
        whole = list(train(Program(trial, images)))
        memory = Memory()
        stopped = train(Program(trial, images), slot=memory)
        for _ in range(2):
            next(stopped)
        stopped.close()  # type: ignore[attr-defined]
        assert memory.writes == 1
        assert numbers(train(Program(trial, images), slot=memory)) == numbers(whole), str(trial)


@pytest.mark.gpu
def test_noise_in_a_graph_is_new_at_every_step_and_the_same_in_every_run(
    deterministic: None, tmp_path: Path, make_trial: Make, digits: Dataset
) -> None:
    trial = make_trial(written(tmp_path, "drop", DROPOUT), lr=0.01)
    first, neighbour, second = histories([trial, dataclasses.replace(trial, seed=7), trial], digits, CUDA)
    assert numbers(first) == numbers(second)
    assert len({e.test_loss for e in first}) == len(first)
    assert first[0].train_loss != neighbour[0].train_loss


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", [True, False])
def test_the_heads_dropout_depends_on_the_seed_alone(
    deterministic: None, tmp_path: Path, make_trial: Make, digits: Dataset, graphs: bool
) -> None:
    """At one position a pool that adds nothing to the average is the average: with the same masks, the same digits."""
    draws = written(tmp_path, "draws", "return x.mean((2, 3)) + 0 * torch.rand(7, device=x.device).sum()")
    trials = [make_trial(spec, arch="vgg11bn", lr=0.01) for spec in ("gap", draws, "gap")]
    neighbours = [*trials, dataclasses.replace(trials[0], seed=7)]
    first, noisy, again, other = histories(neighbours, digits, CUDA, graphs=graphs)
    assert numbers(first) == numbers(again)
    assert numbers(first) == numbers(noisy)
    assert numbers(first) == numbers(histories(trials[:1], digits, CUDA, graphs=graphs)[0])
    assert first[0].train_loss != other[0].train_loss


# What a graph can hold


@pytest.mark.gpu
@pytest.mark.parametrize("name", pool.names())
def test_every_built_in_pool_is_recorded(name: str) -> None:
    set_matmul_precision("fp32")
    module, inputs = build(name, 64).train(), maps(4, 64, 8, 8).requires_grad_()
    weights, stream = maps(4, 64, seed=7), torch.cuda.Stream()
    (expected,) = torch.autograd.grad((module(inputs) * weights).sum(), inputs)
    weights = weights.to(CUDA)
    with torch.cuda.stream(stream):
        module, x = module.to(CUDA), inputs.detach().to(CUDA).requires_grad_()
        found = torch.empty_like(x)

        def step() -> None:
            found.copy_(torch.autograd.grad((module(x) * weights).sum(), x)[0])

        (replay,) = graphs.record([step], module, rewind=lambda: None)
        found.fill_(math.nan)
        replay()
    stream.synchronize()
    assert found.isfinite().all()
    if name != "stochastic":
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        ("return x.mean((2, 3)) * (1 if x.sum().item() > 0 else 2)", "waits for the GPU"),
        ("return x.mean((2, 3)) * np.random.rand()", "draws random numbers on the CPU"),
        ("self.calls += 1\nreturn x.mean((2, 3)) / self.calls", "changes what Python holds"),
        ("self.ema = self.ema * 0.9 + x.mean((0, 2, 3)).detach()\nreturn x.mean((2, 3)) + 0 * self.ema", "ema"),
    ],
)
def test_a_pool_that_no_graph_can_hold_trains_without_one(
    deterministic: None, forward: str, reason: str, tmp_path: Path, make_trial: Make, digits: Dataset
) -> None:
    trial = make_trial(written(tmp_path, "odd", forward, COUNTED), lr=0.01)
    ((first, *_),) = histories([trial], digits, CUDA, says=reason)
    ((again, *_),) = histories([trial], digits, CUDA, graphs=False)
    ((cpu, *_),) = histories([trial], digits, CPU)
    assert numbers([first]) == numbers([again]), "the attempt left traces"
    assert first.train_loss == pytest.approx(cpu.train_loss, rel=1e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("wait", ["x.sum().item()", "torch.cuda.synchronize()"])
def test_after_a_recording_that_failed_all_is_as_before(
    wait: str, tmp_path: Path, make_trial: Make, digits: Dataset
) -> None:
    """CUDA would refuse the second in the middle of a recording, which torch 2.11 does not recover from."""
    odd = written(tmp_path, "odd", f"{wait}\nreturn nn.functional.dropout(x.mean((2, 3)))")
    trials = [make_trial(odd), make_trial("gap"), make_trial("gem")]
    mixed = histories(
        trials, digits, CUDA, says="trains without CUDA graphs, which is slower: a step waits for the GPU"
    )
    assert all(math.isfinite(epoch.test_loss) for history in mixed for epoch in history)
    before = held()
    block = torch.empty(2**28, dtype=torch.uint8, device=CUDA)
    del block
    assert held() == before, "memory that is free can still be given back"


def held() -> int:
    """Bytes that the allocator cannot give back."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved()


# A worker's packs


def test_a_worker_trains_a_pack_and_writes_it_down(grid: Grid, job: Job, digits: Dataset, device: torch.device) -> None:
    run_pack(list(grid), digits, dataclasses.replace(job, keep_weights=True))
    rows = pd.read_parquet(Path(job.run) / "trials")
    assert (rows["status"] == "completed").all()
    assert len(rows) == len(list(grid))
    assert (rows["peak_memory_mb"] > 1).all()
    assert (rows["images_per_s"] > 0).all()
    assert rows["device"].str.startswith("cpu" if device.type == "cpu" else torch.cuda.get_device_name(CUDA)).all()
    for planned in grid:
        log = RunFolder(job.run).trial(planned.trial.id).log_text()
        assert log is not None
        assert "without CUDA graphs" not in log
        weights = torch.load(Path(job.run) / "weights" / f"{planned.trial.id}.pt", weights_only=True)
        assert {tensor.device.type for tensor in weights.values()} == {"cpu"}


@pytest.mark.gpu
def test_memory_is_given_back(grid: Grid, digits: Dataset) -> None:
    """Of programs that are done, graphs and streams included: or a worker, which is reused, fills up."""
    trials = [planned.trial for planned in grid]
    histories(trials, digits, CUDA)  # libraries keep a workspace for each stream
    before = held()
    for _ in range(2):
        histories(trials, digits, CUDA)
    assert held() - before <= 2**20


@pytest.mark.gpu
def test_without_memory_for_all_the_pack_is_split(grid: Grid, tmp_path: Path, digits: Dataset) -> None:
    run = RunFolder(tmp_path / "run")
    run.create()
    job = Job(run.where, gpu=True)
    trials = list(grid)
    histories([planned.trial for planned in trials], digits, CUDA)  # libraries keep a workspace for each stream
    before = held()
    program = Program(trials[0].trial, Images(digits, CUDA))
    each = torch.cuda.memory_reserved() - before
    del program
    room = held() + 2.5 * each
    torch.cuda.set_per_process_memory_fraction(room / torch.cuda.get_device_properties(CUDA).total_memory)
    try:
        run_pack(trials, digits, job)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert set(pd.read_parquet(Path(job.run) / "trials")["status"]) == {"completed"}
    logs = [run.trial(planned.trial.id).log_text() or "" for planned in trials]
    assert any("out of memory beside others; waits for them to end" in log for log in logs)


@pytest.mark.gpu
def test_a_lost_gpu_ends_the_process_and_no_trial(tmp_path: Path, digits: Dataset) -> None:
    """In a process of its own, which is not to be had back."""
    import subprocess
    import sys

    spoil = (
        "self.calls += 1\nif self.calls > 20:\n    x = x[torch.tensor([99], device=x.device)]\nreturn x.mean((2, 3))"
    )
    code = f"""
from pathlib import Path
from orchestrator.record import Job
from orchestrator.worker import DeviceLostError, run_pack
from results.store.folder import RunFolder
from search_spaces import pool
from trainer import data
from search_spaces.grid import BASELINE, Entry, Grid, Pair
from search_spaces.recipe import Recipe
run = RunFolder({str(tmp_path / "run")!r})
run.create()
entries = tuple(Entry(pool.expand(s)[0], BASELINE) for s in ("gap", {written(tmp_path, "lost", spoil, COUNTED)!r}))
grid = Grid("lost", entries, (Pair("resnet20", "digits"),), (1,), Recipe(epochs=2, batch_size=8, train_samples=100))
job = Job(run.where, gpu=True)
try:
    run_pack(list(grid), data.load("digits", Path("unused")), job)
except DeviceLostError:
    print("lost", len(list(Path(run.where, "trials").iterdir())))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    logs = "".join(path.read_text()[-2000:] for path in (tmp_path / "run" / "logs").iterdir())
    said = f"exit code {done.returncode}\n{done.stderr[-2000:]}\n{logs}"
    assert done.stdout.splitlines()[-1:] == ["lost 0"], said


# A sweep


@pytest.mark.gpu
def test_a_sweep_finds_the_gpu_and_what_to_train_side_by_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray")
    from orchestrator.cli import main

    (tmp_path / "space.yaml").write_text(
        "name: gpu\nrecipe: {epochs: 3, batch_size: 64, lr: 0.02}\narchitectures: [resnet20]\ndatasets: [digits]\n"
        "pools: [{name: gap, role: baseline}, gem, avg_max]\nseeds: [1, 2, 3]\nresources: {trials_per_gpu: auto}\n"
    )
    assert main(["--space", str(tmp_path / "space.yaml"), "--out", str(tmp_path / "run")]) == 0
    rows = pd.read_parquet(tmp_path / "run" / "trials")
    assert len(rows) == 9
    assert set(rows["device"]) == {torch.cuda.get_device_name(CUDA)}
    assert (rows["best_test_acc"] > 50).all()
    assert "side by side (images/s by how many: 1: " in capsys.readouterr().out
    (sizes,) = json.loads((tmp_path / "run" / "packs.json").read_text()).values()
    assert [row["size"] for row in sizes] == [1, 2, 4, 8, 16][: len(sizes)]
    assert all(row["memory_mb"] > 1 for row in sizes)
