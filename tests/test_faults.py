"""What can happen to a trial and to the folder that it writes into, caused for real: what is kept, and what is said."""

from __future__ import annotations

import datetime as real_datetime
import re
import subprocess
import sys
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
from search_spaces.grid import BASELINE, Entry, Grid, Pair, Planned
from search_spaces.recipe import Recipe
from tests.compare import epochs_of
from tests.watching import remount
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


def a_trial(spec: str = "gap") -> Planned:
    entries = (Entry(pool.expand(spec)[0], BASELINE),)
    (planned,) = Grid("faults", entries, (Pair("resnet20", "digits"),), (1,), RECIPE)
    return planned


def log_of(run: RunFolder, planned: Planned) -> str:
    text = run.trial(planned.trial.id).log_text()
    assert text is not None
    return text


def write_pool(folder: Path, body: str) -> str:
    path = folder / "mine.py"
    path.write_text(HEAD + FORWARD + body + AVERAGE)
    return str(path)


@pytest.fixture
def undisturbed(digits: Dataset, tmp_path: Path) -> pd.DataFrame:
    """The epochs of `gap` when nothing happens."""
    run = make_run(tmp_path / "undisturbed")
    run_pack([a_trial()], digits, Job(run.where))
    return epochs_of(run)


def in_a_process(run: RunFolder, spec: str, settings: str = "", before: str = "") -> subprocess.CompletedProcess[str]:
    """`run_pack` of one trial in a process that may be lost."""
    code = f"""
from tests.test_faults import *
from trainer import data
{before}
run_pack([a_trial({spec!r})], data.load("digits", Path()), Job({run.where!r}, {settings}))
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
def test_a_trial_that_hangs_takes_its_process_with_it_and_leaves_its_stack(
    run: RunFolder, tmp_path: Path, hang: str
) -> None:
    spec = write_pool(tmp_path, f"        if self.calls == 5: {hang}\n")
    left = in_a_process(run, spec, "stall_timeout=5.0")
    assert left.returncode == 1, left.stderr
    text = log_of(run, a_trial(spec))
    assert "Timeout (0:00:05)" in text
    assert re.search(r'mine\.py", line \d+ in forward', text), text
    assert run.trial(a_trial(spec).trial.id).checkpoint.read() is not None, "two epochs were over"
    assert run.ended() == {}


@pytest.mark.soak
def test_a_gpu_that_is_never_done_counts_as_hanging_too(run: RunFolder) -> None:
    """There a trial says again and again that it waits."""
    before = """
import itertools
from trainer.device.execution import Execution
Execution.done = lambda self: itertools.repeat(None)
"""
    left = in_a_process(run, "gap", "stall_timeout=5.0", before)
    assert left.returncode == 1, left.stderr
    assert "Timeout (0:00:05)" in log_of(run, a_trial())


@pytest.mark.soak
def test_epochs_that_are_slow_together_are_no_hang(run: RunFolder, tmp_path: Path) -> None:
    spec = write_pool(tmp_path, "        time.sleep(0.5)\n")
    left = in_a_process(run, spec, "stall_timeout=5.0")  # four epochs of three batches
    assert left.returncode == 0, left.stderr
    (row,) = run.trials.read().to_pylist()
    assert row["status"] in schema.TRAINED
    assert row["train_s"] > 5


@pytest.mark.soak
def test_host_memory_that_runs_out_fails_the_trial_with_the_reason(run: RunFolder, tmp_path: Path) -> None:
    spec = write_pool(tmp_path, "        if self.calls == 5: self.all = torch.zeros(2**32)\n")
    limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, (12 * 2**30, 12 * 2**30))"
    assert in_a_process(run, spec, before=limit).returncode == 0
    (row,) = run.trials.read().to_pylist()
    assert row["status"] == schema.FAILED
    assert "can't allocate memory" in row["error"]
    assert row["epochs"] == 2, "those before it are on record"


def test_garbage_on_stdout_ends_up_in_the_log(run: RunFolder, tmp_path: Path, digits: Dataset) -> None:
    noise = "'\\x1b[2J\\udcff\\x00 \\u202e\\ufeff' * 9, end='\\r'"
    body = f"        print({noise}); sys.stderr.write('half a line')\n        os.write(1, b'\\xff\\xfe')\n"
    planned = a_trial(write_pool(tmp_path, body))
    run_pack([planned], digits, Job(run.where))
    assert run.status(planned.trial.id) == schema.COMPLETED
    text = log_of(run, planned)
    assert "\\udcff" in text
    assert "half a line" in text


def test_a_clock_that_jumps_changes_no_duration(
    run: RunFolder, digits: Dataset, monkeypatch: pytest.MonkeyPatch, undisturbed: pd.DataFrame
) -> None:
    class Jumping(real_datetime.datetime):
        days = 0

        @classmethod
        def now(cls, tz: Any = None) -> Jumping:
            cls.days -= 1
            return cls.fromtimestamp(1.8e9, tz) + real_datetime.timedelta(days=cls.days)

    monkeypatch.setattr(worker, "datetime", Jumping)
    run_pack([a_trial()], digits, Job(run.where))
    (row,) = run.trials.read().to_pylist()
    assert row["finished_at"] < row["started_at"]
    assert 0 < row["train_s"] < 60
    pd.testing.assert_frame_equal(epochs_of(run), undisturbed)


# Its checkpoint


STATE = checkpoint.encode("one", {"network": {}, "momentum": [], "history": []})


@given(st.data())
def test_no_damage_to_a_checkpoint_goes_unnoticed(data: st.DataObject) -> None:
    """torch.load alone passes over most of it."""
    damage = data.draw(st.sampled_from(["cut", "bit", "more", "other", "another trial's"]))
    at = data.draw(st.integers(0, len(STATE) - 1))
    if damage == "cut":
        found = STATE[:at]
    elif damage == "bit":
        found = STATE[:at] + bytes([STATE[at] ^ 1 << data.draw(st.integers(0, 7))]) + STATE[at + 1 :]
    elif damage == "more":
        found = STATE + data.draw(st.binary(min_size=1))
    elif damage == "another trial's":
        found = checkpoint.encode("two", {})
    else:
        found = data.draw(st.binary())
    with pytest.raises(CheckpointError):
        checkpoint.decode("one", found)


def test_a_damaged_checkpoint_costs_the_epochs_behind_it_and_nothing_else(
    run: RunFolder, digits: Dataset, undisturbed: pd.DataFrame
) -> None:
    planned = a_trial()
    stop_after(2, run, planned, digits)
    slot = run.trial(planned.trial.id).checkpoint
    data = slot.read()
    assert data is not None
    middle = len(data) // 2
    slot.write(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    run_pack([planned], digits, Job(run.where))
    assert "checkpoint passed over, the trial starts from its first epoch: it " in log_of(run, planned)
    pd.testing.assert_frame_equal(epochs_of(run), undisturbed)


def stop_after(epochs: int, run: RunFolder, planned: Planned, digits: Dataset) -> None:
    """A trial whose worker is asked to stop when so many epochs are in its checkpoint."""
    trial_id = planned.trial.id

    def order(_: object) -> str:
        data = run.trial(trial_id).checkpoint.read()
        has_come_far = data and len(checkpoint.decode(trial_id, data)["history"]) >= epochs
        return "stop" if has_come_far else "go on"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lease.LeaseView, "order", order)
        run_pack([planned], digits, Job(run.where))
    assert run.ended() == {}
    assert list(run.under_way()) == [trial_id]


def test_a_trial_that_is_asked_to_stop_loses_nothing(
    run: RunFolder, digits: Dataset, undisturbed: pd.DataFrame
) -> None:
    planned = a_trial()
    stop_after(2, run, planned, digits)
    assert run.epochs.read()["epoch"].to_pylist() == [1, 2]
    with pytest.MonkeyPatch.context() as patch:  # again as it resumes: the epochs behind it are kept
        patch.setattr(lease.LeaseView, "order", lambda _: "stop" if "resumed" in log_of(run, planned) else "go on")
        run_pack([planned], digits, Job(run.where))
    assert run.epochs.read()["epoch"].to_pylist() == [1, 2, 3]
    run_pack([planned], digits, Job(run.where))
    said = re.findall("resumed after epoch .|stopped after epoch ., as the sweep was asked to", log_of(run, planned))
    assert [line[: len("stopped after epoch 2")].rstrip(",") for line in said] == [
        "stopped after epoch 2",
        "resumed after epoch 2",
        "stopped after epoch 3",
        "resumed after epoch 3",
    ]
    pd.testing.assert_frame_equal(epochs_of(run), undisturbed)


def test_a_worker_whose_driver_has_lost_the_folder_writes_nothing_more(run: RunFolder, digits: Dataset) -> None:
    planned = a_trial()
    run_pack([planned], digits, Job(run.where, driver="of a driver that is gone"))
    assert run.ended() == {}
    assert run.trial(planned.trial.id).log_text() is None, "it was not even begun"


@pytest.mark.soak
def test_a_machine_that_comes_back_does_not_overwrite_what_was_trained_elsewhere(
    run: RunFolder, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = a_trial()

    def overtaken(*arguments: Any, **settings: Any) -> worker.Program:
        run_pack([planned], digits, Job(run.where))  # by another worker, from first to last
        return worker.Program(*arguments, **settings)

    monkeypatch.setattr(worker, "WRITE_EVERY_S", 0.0)
    run_pack([planned], digits, Job(run.where), make_program=overtaken)
    (row,) = run.trials.read().to_pylist()
    assert row["attempt"] == 2, "the one that was there first"
    assert row["status"] == schema.COMPLETED
    assert "another attempt has ended this trial as completed; this one is dropped" in log_of(run, planned)


def test_checkpoints_come_by_the_clock_too(
    run: RunFolder, tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "CHECKPOINT_EVERY_S", 0.0)
    planned = a_trial(write_pool(tmp_path, "        if self.calls == 7: raise ValueError('in epoch 4')\n"))
    run_pack([planned], digits, Job(run.where, checkpoint_every=100))
    data = run.trial(planned.trial.id).checkpoint.read()
    assert data is not None
    assert len(checkpoint.decode(planned.trial.id, data)["history"]) == 3


# The run folder


@pytest.mark.soak
def test_a_disk_that_is_full_fails_no_trial_and_once_there_is_room_it_goes_on(
    small_disk: Path, digits: Dataset, undisturbed: pd.DataFrame
) -> None:
    run = make_run(small_disk / "run")
    planned = a_trial()
    with pytest.raises(FolderError, match=r"cannot be written on .*: No space left on device"):
        run_pack([planned], digits, Job(run.where))
    assert run.ended() == {}
    assert not run.files.leftovers(), "half a checkpoint"
    remount(small_disk, "size=30m")
    run_pack([planned], digits, Job(run.where))
    assert run.status(planned.trial.id) == schema.COMPLETED
    pd.testing.assert_frame_equal(epochs_of(run), undisturbed)


@pytest.mark.soak
def test_a_folder_that_becomes_unwritable_in_mid_run(
    small_disk: Path, digits: Dataset, undisturbed: pd.DataFrame, tmp_path: Path
) -> None:
    remount(small_disk, "size=30m")
    run = make_run(small_disk / "run")
    planned = a_trial()

    def make(*arguments: Any, **settings: Any) -> Any:
        subprocess.run(["umount", "--lazy", str(small_disk)], check=True)  # open files stay open, as on a lost share
        return worker.Program(*arguments, **settings)

    with pytest.raises(FolderError, match="No such file or directory"):
        run_pack([planned], digits, Job(run.where), make_program=make)
    assert list(small_disk.iterdir()) == [], "nothing is written where the folder only used to be"
    again = make_run(tmp_path / "again")
    run_pack([planned], digits, Job(again.where))
    pd.testing.assert_frame_equal(epochs_of(again), undisturbed)
