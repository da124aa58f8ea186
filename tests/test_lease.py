"""One driver to a run folder: who is refused, who takes over, and what workers hear of it."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from results.store import lease
from results.store.folder import RunFolder
from results.store.lease import Driver, Lease, LeaseView, holder
from search_spaces.errors import RequestError
from search_spaces.messages import shown_by

HOLDER = """
import sys, time
from results.store.lease import Lease
from results.store.folder import RunFolder
with Lease(RunFolder(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heartbeats and looks that a test need not wait for."""
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.02)
    monkeypatch.setattr(lease, "SETTLE_S", {True: 0.05})
    monkeypatch.setattr(lease, "LOOK_EVERY_S", {True: 0.0})


def elsewhere() -> Driver:
    return dataclasses.replace(Driver.here(), host="node7", machine="node7 another-boot")


def write(run: RunFolder, driver: Driver) -> None:
    other = Lease(run, here=driver)
    other._write()


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)  # polls another thread or process


def test_a_lease_ends_with_its_block(run: RunFolder) -> None:
    with Lease(run) as mine:
        found = holder(run)
        assert found is not None
        assert found.token == mine.token
        assert mine.stands()
    assert holder(run) is None
    assert not run.files.exists(lease.NAME)


def test_the_second_is_refused_with_who_holds_it(run: RunFolder) -> None:
    with Lease(run), pytest.raises(RequestError) as refused, Lease(run):
        pass
    told = str(refused.value)
    assert "is in use by another sweep: process " in told
    assert f"kill {Driver.here().pid}" in told
    assert "another --out" in told


def test_a_driver_that_was_killed_is_taken_over_at_once(run: RunFolder) -> None:
    command = [sys.executable, "-c", HOLDER, run.where]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1])
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(RequestError, match=f"process {process.pid} on"):
            Lease(run).check()
    finally:
        process.kill()
        process.wait()
    said: list[str] = []
    with shown_by(said.append), Lease(run) as mine:
        assert mine.stands()
    assert f"was left by process {process.pid}" in said[0]


def test_a_process_number_that_is_used_again_is_another_process(run: RunFolder) -> None:
    write(run, dataclasses.replace(Driver.here(), started="1"))
    with Lease(run) as mine:
        assert mine.stands()


@pytest.mark.usefixtures("quick")
def test_a_driver_on_another_machine_is_refused_while_it_lives_and_taken_over_when_it_is_silent(
    run: RunFolder,
) -> None:
    said: list[str] = []
    with shown_by(said.append):
        with Lease(run, here=elsewhere()), pytest.raises(RequestError, match="on node7"), Lease(run):
            pass
        assert "waiting 45 s for a sign of life" in said[0]
        write(run, elsewhere())
        with Lease(run, patience_s=0.2) as mine:
            assert mine.stands()
    assert "there was none" in said[-1]


@pytest.mark.usefixtures("quick")
def test_of_several_that_come_at_once_one_gets_it(run: RunFolder) -> None:
    start, over = threading.Barrier(6), threading.Barrier(6)
    won: list[str] = []

    def attempt() -> None:
        start.wait()
        try:
            with Lease(run) as mine:
                won.append(mine.token)
                over.wait()
        except RequestError:
            over.wait()

    threads = [threading.Thread(target=attempt) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1


@pytest.mark.usefixtures("quick")
def test_what_workers_hear(run: RunFolder) -> None:
    with Lease(run) as mine:
        view = LeaseView(run, mine.token)
        assert view.order() == "go on"
        mine.ask_to_stop()
        assert view.order() == "stop"
        until(lambda: (found := holder(run)) and found.heartbeat > 2)
        assert view.order() == "stop", "a heartbeat does not take it back"
    assert view.order() == "not yours", "there is no driver any more"
    with Lease(run):
        assert view.order() == "not yours"
    assert LeaseView(run, None).order() == "go on", "a worker of nobody's"


@pytest.mark.usefixtures("quick")
def test_a_driver_that_slept_too_long_learns_who_has_its_folder_and_leaves_it_to_them(run: RunFolder) -> None:
    with Lease(run) as slept:
        write(run, elsewhere())
        until(lambda: slept.lost_to)
        assert not slept.stands()
        assert slept.lost_to
        assert slept.lost_to.host == "node7"
    found = holder(run)
    assert found is not None
    assert found.host == "node7"


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b'{"token": 3}', b"\xff\xfe", b"null"])
def test_what_is_no_lease_holds_nobody_up(run: RunFolder, content: bytes) -> None:
    run.files.write(lease.NAME, content)
    assert holder(run) is None
    with Lease(run) as mine:
        assert mine.stands()


def test_a_worker_looks_now_and_then_only(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    with Lease(run) as mine:
        view = LeaseView(run, mine.token)
        assert view.order() == "go on"
        monkeypatch.setattr(lease, "holder", lambda _: pytest.fail("looked again"))
        assert view.order() == "go on"
        monkeypatch.undo()
