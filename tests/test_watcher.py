"""What becomes of the trials of a worker that died, was lost or left."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
from rich.console import Console

from orchestrator.progress import Progress
from orchestrator.record import FolderError, Job
from orchestrator.watcher import Watcher
from results.store import lease, schema
from results.store.folder import RunFolder
from results.store.lease import Driver, Lease
from search_spaces import pool
from search_spaces.grid import BASELINE, Entry, Grid, Pair, Planned
from search_spaces.recipe import Recipe

ENTRIES = tuple(Entry(each, BASELINE) for name in ("gap", "gem", "avg_max") for each in pool.expand(name))
PACK: list[Planned] = list(Grid("few", ENTRIES, (Pair("resnet20", "digits"),), (1,), Recipe(epochs=2)))
DONE = {"status": schema.COMPLETED, "best_test_acc": 9.0, "train_s": 1.0, "error": None}


@pytest.fixture
def mine(run: RunFolder) -> Iterator[Lease]:
    with Lease(run) as claimed:
        yield claimed


@pytest.fixture
def watcher(run: RunFolder, mine: Lease) -> Watcher:
    job = Job(run.where, gpu=False, threads=1, checkpoint_every=1, compiled=False, git_commit=None, stall_timeout=5.0)
    return Watcher(Progress(PACK, 0, Console(file=io.StringIO())), job, mine)


def test_a_pack_that_dies_is_split_into_what_it_left_behind(watcher: Watcher, run: RunFolder) -> None:
    watcher.ended(PACK[1], DONE)
    watcher.died(PACK, "its worker failed 2 times\nwhat Ray says")
    assert watcher.take_again() == [[PACK[0]], [PACK[2]]]
    assert watcher.take_again() == []
    assert run.ended() == {}, "nobody knows whose fault it was"


def test_a_trial_alone_that_dies_has_failed(watcher: Watcher, run: RunFolder) -> None:
    watcher.died(PACK[:1], "its worker failed 3 times\nwhat Ray says")
    (row,) = run.read_trials().to_pylist()
    assert row["trial_id"] == PACK[0].trial.id
    assert row["status"] == schema.FAILED
    assert row["error"] == "its worker failed 3 times"
    text = run.log_text(PACK[0].trial.id)
    assert text is not None
    assert "what Ray says" in text
    assert watcher.take_again() == []


def test_one_that_hung_is_said_to_have(watcher: Watcher, run: RunFolder) -> None:
    with run.open_log(PACK[0].trial.id) as log:
        print('attempt 1: x\nTimeout (0:00:05)!\nattempt 2: x\nTimeout (0:00:05)!\n  File "mine.py", line 3', file=log)
    watcher.died(PACK[:1], "its worker failed 2 times")
    (row,) = run.read_trials().to_pylist()
    assert row["error"] == "it hung: no epoch for 5 s (stall_timeout); where, says its log"
    assert row["attempt"] == 2


def test_what_was_on_a_machine_that_is_lost_runs_again_as_it_was(watcher: Watcher, run: RunFolder) -> None:
    watcher.ended(PACK[1], DONE)
    watcher.lost(PACK)
    assert watcher.take_again() == [[PACK[0], PACK[2]]]
    watcher.ended(PACK[0], DONE)
    watcher.ended(PACK[2], DONE)
    watcher.lost(PACK)
    assert watcher.take_again() == [], "all of it had ended"
    assert run.ended() == {}


def test_who_leaves_without_a_result_has_failed(watcher: Watcher, run: RunFolder) -> None:
    watcher.ended(PACK[0], DONE)
    watcher.left(PACK[:2])
    (row,) = run.read_trials().to_pylist()
    assert row["trial_id"] == PACK[1].trial.id
    assert row["error"] == "its worker left without a result; see ray.log"


def test_a_folder_that_is_lost_fails_no_trial(watcher: Watcher, run: RunFolder) -> None:
    watcher.step()
    watcher.folder_lost("the run folder cannot be written on node7: No space left on device")
    watcher.left(PACK[:1])
    watcher.died(PACK[:1], "its worker failed 3 times")
    assert run.ended() == {}
    with pytest.raises(FolderError, match="node7"):
        watcher.step()


def test_a_driver_that_cannot_write_a_failure_down_stops(watcher: Watcher, run: RunFolder) -> None:
    for path in ((run.path / "logs"), (run.path / "trials")):
        path.rmdir()
    watcher.died(PACK[:1], "its worker failed 3 times")
    with pytest.raises(FolderError, match="No such file"):
        watcher.step()


def test_a_driver_that_has_lost_its_folder_marks_nothing(watcher: Watcher, run: RunFolder, mine: Lease) -> None:
    other = Lease(run, here=Driver.here())
    other._write()
    watcher.left(PACK[:1])
    assert run.ended() == {}
    with pytest.raises(FolderError, match="taken over by process"):
        watcher.step()
    found = lease.holder(run)
    assert found is not None
    assert found.token == other.token != mine.token
