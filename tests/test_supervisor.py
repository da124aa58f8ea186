"""What becomes of the trials of a worker that died, was lost or left."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from orchestrator.record import FolderError, Job, row
from orchestrator.supervisor import Supervisor
from results.store import lease, schema
from results.store.attempt import Attempt
from results.store.folder import RunFolder
from results.store.lease import Driver, Lease
from search_spaces import pool
from search_spaces.grid import BASELINE, Entry, Grid, Pair, Planned
from search_spaces.recipe import Recipe
from trainer.outcome import Epoch

ENTRIES = tuple(Entry(each, BASELINE) for name in ("gap", "gem", "avg_max") for each in pool.expand(name))
PACK: list[Planned] = list(Grid("few", ENTRIES, (Pair("resnet20", "digits"),), (1,), Recipe(epochs=2)))
HISTORY = [Epoch(epoch, 1.0, 50.0, 1.0, 60.0, 0.1, 10.0, 100.0) for epoch in (1, 2)]


def end(run: RunFolder, planned: Planned) -> None:
    run.write_trial(row(planned, schema.COMPLETED, HISTORY, None))


@pytest.fixture
def mine(run: RunFolder) -> Iterator[Lease]:
    with Lease(run) as claimed:
        yield claimed


@pytest.fixture
def supervisor(run: RunFolder, mine: Lease) -> Supervisor:
    return Supervisor(Job(run.where, stall_timeout=5.0), mine)


def test_a_pack_that_dies_is_split_into_what_it_left_behind(supervisor: Supervisor, run: RunFolder) -> None:
    end(run, PACK[1])
    supervisor.died(PACK, "its worker failed 2 times\nwhat Ray says")
    assert supervisor.take_again() == [[PACK[0]], [PACK[2]]]
    assert supervisor.take_again() == []
    assert list(run.ended()) == [PACK[1].trial.id], "nobody knows whose fault it was"


def test_a_trial_alone_that_dies_has_failed_and_nothing_is_read_off_what_its_pool_prints(
    supervisor: Supervisor, run: RunFolder
) -> None:
    with run.trial(PACK[0].trial.id).open_log() as log:
        print("attempt 7: x\nTimeout (0:00:05)!", file=log)
    run.trial(PACK[0].trial.id).write_attempt(Attempt(1))
    supervisor.died(PACK[:1], "its worker failed 3 times\nwhat Ray says")
    (found,) = run.trials.read(["trial_id", "status", "attempt", "error"]).to_pylist()
    assert list(found.values()) == [PACK[0].trial.id, schema.FAILED, 1, "its worker failed 3 times"]
    assert "what Ray says" in (run.trial(PACK[0].trial.id).log_text() or "")
    assert not supervisor.take_again()
    assert not run.under_way()


def test_one_that_hung_is_said_to_have(supervisor: Supervisor, run: RunFolder) -> None:
    run.trial(PACK[0].trial.id).write_attempt(Attempt(2, hung=True))
    supervisor.died(PACK[:1], "its worker failed 2 times")
    (found,) = run.trials.read().to_pylist()
    assert found["error"] == "it hung: no epoch for 5 s (stall_timeout); the log says where"
    assert found["attempt"] == 2


def test_what_was_on_a_machine_that_is_lost_runs_again_as_it_was(supervisor: Supervisor, run: RunFolder) -> None:
    end(run, PACK[1])
    supervisor.lost(PACK)
    assert supervisor.take_again() == [[PACK[0], PACK[2]]]
    end(run, PACK[0])
    end(run, PACK[2])
    supervisor.lost(PACK)
    assert supervisor.take_again() == [], "all of it had ended"
    assert [one.status for one in run.ended().values()] == [schema.COMPLETED] * 3


def test_who_leaves_without_a_result_has_failed(supervisor: Supervisor, run: RunFolder) -> None:
    end(run, PACK[0])
    supervisor.left(PACK[:2])
    (found,) = run.trials.read(where={"trial_id": PACK[1].trial.id}).to_pylist()
    assert found["error"] == "its worker left without a result; see ray.log"
    assert run.status(PACK[0].trial.id) == schema.COMPLETED


def test_a_row_of_an_earlier_sweep_is_no_end(run: RunFolder, mine: Lease) -> None:
    before = {**row(PACK[0], schema.FAILED, (), "it raised"), "attempt": 3}
    run.write_trial(before)
    supervisor = Supervisor(Job(run.where), mine, {PACK[0].trial.id: 3})
    supervisor.lost(PACK[:1])
    assert supervisor.take_again() == [[PACK[0]]]
    run.write_trial({**before, "attempt": 4})
    supervisor.lost(PACK[:1])
    assert supervisor.take_again() == []


def test_a_folder_that_is_lost_fails_no_trial(supervisor: Supervisor, run: RunFolder) -> None:
    supervisor.step()
    supervisor.folder_lost("the run folder cannot be written on node7: No space left on device")
    supervisor.left(PACK[:1])
    supervisor.died(PACK[:1], "its worker failed 3 times")
    assert run.ended() == {}
    with pytest.raises(FolderError, match="node7"):
        supervisor.step()


def test_a_driver_that_cannot_write_a_failure_down_stops(supervisor: Supervisor, run: RunFolder) -> None:
    for path in ((run.path / "logs"), (run.path / "trials")):
        path.rmdir()
    supervisor.died(PACK[:1], "its worker failed 3 times")
    with pytest.raises(FolderError, match="No such file"):
        supervisor.step()


def test_a_driver_that_has_lost_its_folder_marks_nothing(supervisor: Supervisor, run: RunFolder, mine: Lease) -> None:
    other = Lease(run, here=Driver.here())
    other._write()
    supervisor.left(PACK[:1])
    assert run.ended() == {}
    with pytest.raises(FolderError, match="taken over by process"):
        supervisor.step()
    found = lease.holder(run)
    assert found is not None
    assert found.token == other.token != mine.token
