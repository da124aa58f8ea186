"""What can happen to a trial and to the folder that it writes into, caused for real: what is kept, and what is said."""

from __future__ import annotations

import dataclasses
import datetime as real_datetime
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import worker
from orchestrator.record import FolderError, Job
from orchestrator.worker import run_pack
from results.store import lease, schema
from results.store.folder import RunFolder
from search_spaces import pool
from search_spaces.grid import BASELINE, Entry, Grid, Pair
from search_spaces.recipe import Recipe
from trainer import checkpoint, train
from trainer.checkpoint import CheckpointError
from trainer.data import Dataset

pytestmark = pytest.mark.usefixtures("nothing_collapses")  # trials of a few steps are no better than guessing
ROOT = Path(__file__).parents[1]
RECIPE = Recipe(epochs=4, batch_size=32, lr=0.02, train_samples=64, test_samples=40)
HEAD = "import os, re, sys, time\nimport torch\nfrom torch import nn\nclass CustomPool(nn.Module):\n    calls = 0\n"
FORWARD = "    def forward(self, x):\n        self.calls += self.training\n"
AVERAGE = "        return x.mean((2, 3))\n"


def make_run(folder: Path) -> RunFolder:
    run = RunFolder(folder)
    run.create()
    return run


def make_grid(*specs: str, **recipe: Any) -> Grid:
    entries = tuple(Entry(pool.expand(spec)[0], BASELINE) for spec in specs)
    return Grid("faults", entries, (Pair("resnet20", "digits"),), (1,), dataclasses.replace(RECIPE, **recipe))


def make_job(run: RunFolder, **settings: Any) -> Job:
    return Job(run.where, gpu=False, threads=1, checkpoint_every=1, compiled=False, git_commit=None, **settings)


def write_pool(folder: Path, body: str) -> str:
    path = folder / "mine.py"
    path.write_text(HEAD + FORWARD + body + AVERAGE)
    return str(path)


def epochs_of(run: RunFolder) -> pd.DataFrame:
    return run.epochs.read().to_pandas().drop(columns="epoch_s").sort_values(["trial_id", "epoch"], ignore_index=True)


@pytest.fixture
def undisturbed(digits: Dataset, tmp_path: Path) -> pd.DataFrame:
    """The epochs of `gap` when nothing happens."""
    run = make_run(tmp_path / "undisturbed")
    run_pack(list(make_grid("gap")), digits, make_job(run))
    return epochs_of(run)


def in_a_process(run: RunFolder, spec: str, settings: str = "", before: str = "") -> subprocess.CompletedProcess[str]:
    """`run_pack` of one trial in a process that may be lost."""
    code = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
from test_faults import *
from trainer import data
{before}
run = RunFolder({run.where!r})
trials = list(make_grid({spec!r}))
run_pack(trials, data.load("digits", Path()), make_job(run, {settings}))
"""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


# A trial


@pytest.mark.parametrize(
    "hang",
    ["time.sleep(600)", pytest.param("re.fullmatch('(a+)+b', 'a' * 60)", marks=pytest.mark.soak)],  # holds the GIL
    ids=["in Python", "in C, holding Python's lock"],
)
def test_a_trial_that_hangs_takes_its_process_with_it_and_leaves_its_stack(tmp_path: Path, hang: str) -> None:
    run = make_run(tmp_path / "run")
    spec = write_pool(tmp_path, f"        if self.calls == 5: {hang}\n")
    left = in_a_process(run, spec, "stall_timeout=1.5")
    assert left.returncode == 1, left.stderr
    (planned,) = make_grid(spec)
    text = run.trial(planned.trial.id).log_text()
    assert text is not None
    assert "Timeout (0:00:01" in text
    assert re.search(r'mine\.py", line \d+ in forward', text), text
    assert run.trial(planned.trial.id).checkpoint.read() is not None, "two epochs were over"
    assert run.ended() == {}


@pytest.mark.soak
def test_a_gpu_that_is_never_done_counts_as_hanging_too(tmp_path: Path) -> None:
    """There a trial says again and again that it waits."""
    run = make_run(tmp_path / "run")
    before = """
import itertools
from trainer.device.execution import Execution
Execution.done = lambda self: itertools.repeat(None)
"""
    left = in_a_process(run, "gap", "stall_timeout=1.5", before)
    assert left.returncode == 1, left.stderr
    (planned,) = make_grid("gap")
    text = run.trial(planned.trial.id).log_text()
    assert text is not None
    assert "Timeout (0:00:01.5" in text


@pytest.mark.soak
def test_epochs_that_are_slow_together_are_no_hang(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    spec = write_pool(tmp_path, "        time.sleep(0.5)\n")
    left = in_a_process(run, spec, "stall_timeout=5.0")  # four epochs of three batches
    assert left.returncode == 0, left.stderr
    (row,) = run.trials.read().to_pylist()
    assert row["status"] in schema.TRAINED
    assert row["train_s"] > 5


@pytest.mark.soak
def test_host_memory_that_runs_out_fails_the_trial_with_the_reason(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    spec = write_pool(tmp_path, "        if self.calls == 5: self.all = torch.zeros(2**32)\n")
    limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, (12 * 2**30, 12 * 2**30))"
    assert in_a_process(run, spec, before=limit).returncode == 0
    (row,) = run.trials.read().to_pylist()
    assert row["status"] == schema.FAILED
    assert "can't allocate memory" in row["error"]
    assert row["epochs"] == 2, "those before it are on record"


def test_garbage_on_stdout_ends_up_in_the_log(tmp_path: Path, digits: Dataset) -> None:
    run = make_run(tmp_path / "run")
    noise = "'\\x1b[2J\\udcff\\x00 \\u202e\\ufeff' * 9, end='\\r'"
    spec = write_pool(
        tmp_path, f"        print({noise}); sys.stderr.write('half a line')\n        os.write(1, b'\\xff\\xfe')\n"
    )
    (planned,) = make_grid(spec)
    run_pack([planned], digits, make_job(run))
    assert run.status(planned.trial.id) == schema.COMPLETED
    text = run.trial(planned.trial.id).log_text()
    assert text is not None
    assert "\\udcff" in text
    assert "half a line" in text


def test_a_clock_that_jumps_changes_no_duration(
    tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch, undisturbed: pd.DataFrame
) -> None:
    class Jumping(real_datetime.datetime):
        days = 0

        @classmethod
        def now(cls, tz: Any = None) -> Jumping:
            cls.days -= 1
            return cls.fromtimestamp(1.8e9, tz) + real_datetime.timedelta(days=cls.days)

    run = make_run(tmp_path / "run")
    monkeypatch.setattr(worker, "datetime", Jumping)
    run_pack(list(make_grid("gap")), digits, make_job(run))
    (row,) = run.trials.read().to_pylist()
    assert row["finished_at"] < row["started_at"]
    assert 0 < row["train_s"] < 60
    pd.testing.assert_frame_equal(epochs_of(run), undisturbed)


# Its checkpoint


STATE = checkpoint.encode("one", {"network": {}, "momentum": [], "history": []})


@given(st.data())
def test_no_damage_to_a_checkpoint_goes_unnoticed(data: st.DataObject) -> None:
    """torch.load alone passes over most of it."""
    damage = data.draw(st.sampled_from(["cut", "bit", "more", "other"]))
    at = data.draw(st.integers(0, len(STATE) - 1))
    if damage == "cut":
        found = STATE[:at]
    elif damage == "bit":
        found = STATE[:at] + bytes([STATE[at] ^ 1 << data.draw(st.integers(0, 7))]) + STATE[at + 1 :]
    elif damage == "more":
        found = STATE + data.draw(st.binary(min_size=1))
    else:
        found = data.draw(st.binary())
    with pytest.raises(CheckpointError):
        checkpoint.decode("one", found)


@pytest.mark.parametrize(
    "damage",
    ["a bit", *(pytest.param(damage, marks=pytest.mark.soak) for damage in ("cut", "another trial's", "empty"))],
)
def test_a_damaged_checkpoint_costs_the_epochs_behind_it_and_nothing_else(
    tmp_path: Path, digits: Dataset, undisturbed: pd.DataFrame, damage: str
) -> None:
    run = make_run(tmp_path / "run")
    (planned,) = make_grid("gap")
    stop_after(run, planned, digits, epochs=2)
    slot = run.trial(planned.trial.id).checkpoint
    data = slot.read()
    assert data is not None
    middle = len(data) // 2
    slot.write(
        {
            "a bit": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
            "cut": data[:middle],
            "another trial's": checkpoint.encode("gem-resnet20", {}),
            "empty": b"",
        }[damage]
    )
    run_pack([planned], digits, make_job(run))
    text = run.trial(planned.trial.id).log_text()
    assert text is not None
    assert "checkpoint passed over, the trial starts from its first epoch: it " in text
    pd.testing.assert_frame_equal(epochs_of(run), undisturbed)


def stop_after(run: RunFolder, planned: Any, digits: Dataset, epochs: int) -> None:
    """A trial whose worker is asked to stop when it has come that far."""
    slot = run.trial(planned.trial.id).checkpoint

    def has_come_far() -> bool:
        data = slot.read()
        return bool(data) and len(checkpoint.decode(planned.trial.id, data)["history"]) >= epochs

    stop_when(has_come_far, run, planned, digits)


def stop_when(it_is_time: Callable[[], bool], run: RunFolder, planned: Any, digits: Dataset) -> None:
    def order(_: object) -> str:
        return "stop" if it_is_time() else "go on"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lease.LeaseView, "order", order)
        run_pack([planned], digits, make_job(run))
    assert run.ended() == {}
    assert list(run.under_way()) == [planned.trial.id]


def test_a_trial_that_is_asked_to_stop_loses_nothing(
    tmp_path: Path, digits: Dataset, undisturbed: pd.DataFrame
) -> None:
    run = make_run(tmp_path / "run")
    (planned,) = make_grid("gap")
    stop_after(run, planned, digits, epochs=2)
    assert run.epochs.read()["epoch"].to_pylist() == [1, 2]
    run_pack([planned], digits, make_job(run))
    text = run.trial(planned.trial.id).log_text()
    assert text is not None
    assert "stopped after epoch 2, as the sweep was asked to" in text
    assert "resumed after epoch 2" in text
    pd.testing.assert_frame_equal(epochs_of(run), undisturbed)


@pytest.mark.soak
def test_a_trial_that_is_asked_to_stop_as_it_resumes_keeps_the_epochs_behind_it(
    tmp_path: Path, digits: Dataset, undisturbed: pd.DataFrame
) -> None:
    run = make_run(tmp_path / "run")
    (planned,) = make_grid("gap")
    stop_after(run, planned, digits, epochs=2)
    stop_when(lambda: "resumed" in (run.trial(planned.trial.id).log_text() or ""), run, planned, digits)
    assert run.epochs.read()["epoch"].to_pylist() == [1, 2, 3]
    text = run.trial(planned.trial.id).log_text()
    assert text is not None
    assert "stopped after epoch 3, as the sweep was asked to" in text
    run_pack([planned], digits, make_job(run))
    pd.testing.assert_frame_equal(epochs_of(run), undisturbed)


def test_a_worker_whose_driver_has_lost_the_folder_writes_nothing_more(tmp_path: Path, digits: Dataset) -> None:
    run = make_run(tmp_path / "run")
    (planned,) = make_grid("gap")
    run_pack([planned], digits, make_job(run, driver="of a driver that is gone"))
    assert run.ended() == {}
    assert run.trial(planned.trial.id).log_text() is None, "it was not even begun"


@pytest.mark.soak
def test_a_machine_that_comes_back_does_not_overwrite_what_was_trained_elsewhere(
    tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run")
    (planned,) = make_grid("gap")
    elsewhere = overtaken(run, planned, digits)
    monkeypatch.setattr(worker, "WRITE_EVERY_S", 0.0)
    run_pack([planned], digits, make_job(run), make_program=elsewhere)
    (row,) = run.trials.read().to_pylist()
    assert row["attempt"] == 2, "the one that was there first"
    assert row["status"] == schema.COMPLETED
    text = run.trial(planned.trial.id).log_text()
    assert text is not None
    assert "another attempt has ended this trial as completed; this one is dropped" in text


def overtaken(run: RunFolder, planned: Any, digits: Dataset) -> Callable[..., Any]:
    """A program during whose building the same trial is trained by another worker, from first to last."""

    def make(*arguments: Any, **settings: Any) -> Any:
        run_pack([planned], digits, make_job(run))
        return worker.Program(*arguments, **settings)

    return make


def test_checkpoints_come_by_the_clock_too(tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "CHECKPOINT_EVERY_S", 0.0)
    run = make_run(tmp_path / "run")
    spec = write_pool(tmp_path, "        if self.calls == 7: raise ValueError('in epoch 4')\n")
    (planned,) = make_grid(spec)
    run_pack([planned], digits, dataclasses.replace(make_job(run), checkpoint_every=100))
    data = run.trial(planned.trial.id).checkpoint.read()
    assert data is not None
    assert len(checkpoint.decode(planned.trial.id, data)["history"]) == 3


# The run folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB: a checkpoint of ResNet-20 takes 2.2."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=False, stderr=subprocess.DEVNULL)  # a test may have done it


def remount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True)


@pytest.mark.soak
def test_a_disk_that_is_full_fails_no_trial_and_once_there_is_room_it_goes_on(
    small_disk: Path, digits: Dataset, undisturbed: pd.DataFrame
) -> None:
    run = make_run(small_disk / "run")
    (planned,) = make_grid("gap")
    with pytest.raises(FolderError, match=r"cannot be written on .*: No space left on device"):
        run_pack([planned], digits, make_job(run))
    assert run.ended() == {}
    assert not run.files.leftovers(-1), "half a checkpoint"
    remount(small_disk, "size=30m")
    run_pack([planned], digits, make_job(run))
    assert run.status(planned.trial.id) == schema.COMPLETED
    pd.testing.assert_frame_equal(epochs_of(run), undisturbed)


@pytest.mark.soak
def test_a_folder_that_becomes_unwritable_in_mid_run(
    small_disk: Path, digits: Dataset, undisturbed: pd.DataFrame, tmp_path: Path
) -> None:
    remount(small_disk, "size=30m")
    run = make_run(small_disk / "run")
    (planned,) = make_grid("gap")

    def make(*arguments: Any, **settings: Any) -> Any:
        subprocess.run(["umount", "--lazy", str(small_disk)], check=True)  # open files stay open, as on a lost share
        return worker.Program(*arguments, **settings)

    with pytest.raises(FolderError, match="No such file or directory"):
        run_pack([planned], digits, make_job(run), make_program=make)
    assert list(small_disk.iterdir()) == [], "nothing is written where the folder only used to be"
    again = make_run(tmp_path / "again")
    run_pack([planned], digits, make_job(again))
    pd.testing.assert_frame_equal(epochs_of(again), undisturbed)
