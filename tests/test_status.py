"""How far a sweep is, from its folder alone."""

from __future__ import annotations

import dataclasses
import io
import os
import time
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.record import row
from results import status as watching
from results.__main__ import main
from results.status import Screen, Status, Watch
from results.store import schema
from results.store.attempt import Attempt
from results.store.folder import RunFolder
from results.store.lease import Driver, Lease
from search_spaces import pool
from search_spaces.errors import RequestError
from search_spaces.grid import Entry, Grid, Pair, Planned
from search_spaces.recipe import Recipe
from trainer.outcome import Epoch

GRID = Grid(
    "g",
    (Entry(pool.expand("gap")[0], "baseline"), Entry(pool.expand("gem")[0])),
    (Pair("resnet20", "digits"), Pair("vgg11bn", "digits", hidden=True)),
    (1, 2, 3),
    Recipe(epochs=4),
)


def status(run: RunFolder) -> Status:
    return Watch(run).status()


def history(epochs: int) -> list[Epoch]:
    return [Epoch(n, 1.0, 50.0, 1.0, 60.0 + n, 0.1, 10.0, 100.0) for n in range(1, epochs + 1)]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """One completed, one failed, one running at its second epoch, one that stopped long ago, and the rest to do."""
    folder = RunFolder(tmp_path / "run")
    folder.create()
    folder.write_grid(GRID)
    completed, failed, running, stopped = (p for p in GRID if not p.hidden and p.trial.seed < 3)

    folder.write_trial(row(completed, schema.COMPLETED, history(4), None))
    folder.write_trial(row(failed, schema.FAILED, history(1), "ValueError: no\nand more"))
    folder.trial(running.trial.id).write_attempt(Attempt(1, epoch=2, test_acc=62.0, epoch_s=10.0, images_per_s=1234.5))
    folder.trial(stopped.trial.id).write_attempt(Attempt(1, epoch=3, test_acc=63.0, epoch_s=10.0, images_per_s=1234.5))
    long_ago = time.time() - 7200
    os.utime(folder.path / "attempts" / f"{stopped.trial.id}.json", (long_ago, long_ago))
    return folder


def test_everything_is_counted(run: RunFolder) -> None:
    found = status(run)
    assert dict(found.counts) == {
        "completed": 1,
        "running": 1,
        "to do": 2,
        "stopped": 1,
        "failed": 1,
        "withheld": 6,
    }
    assert [(one.attempt.epoch, one.attempt.test_acc) for one in found.unfinished] == [(2, 62.0), (3, 63.0)]
    # 10 s an epoch: 2 epochs of the running one, 1 of the stopped one, 4 each of the two that have not begun.
    assert found.left_s == pytest.approx(10 * (2 + 1 + 8))
    said = str(found)
    assert "12 trials: 1 completed, 1 running, 2 to do, 1 stopped, 1 failed, 6 withheld; about 2 min left" in said
    assert "epoch 2/4, 62.00 %, 1,234 images/s\n" in said
    assert "epoch 3/4, 63.00 %, silent for 2 h 00 min" in said
    assert ": ValueError: no" in said
    assert "and more" not in said


def test_before_anything_has_ended_nobody_knows_how_long(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create()
    with pytest.raises(RequestError, match="no sweep has begun"):
        status(folder)
    folder.write_grid(GRID)
    assert str(status(folder)) == "12 trials: 6 to do, 6 withheld"


def test_the_commands(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(run.path)]) == 0
    assert "1 running" in capsys.readouterr().out
    for planned in GRID:
        if not planned.hidden:
            run.write_trial(row(planned, schema.COMPLETED, history(4), None))
    assert main(["watch", str(run.path), "--every", "0.01", "--table"]) == 0
    said = capsys.readouterr().out
    assert "resnet20-digits" in said
    assert "6 completed, 6 withheld" in said


# What a person sees while a sweep runs

FEW = Grid("g", (Entry(pool.expand("gap")[0]),), (Pair("resnet20", "digits"),), (1, 2), Recipe(epochs=100))
FIRST, SECOND = FEW


@pytest.fixture
def sweep(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "sweep")
    folder.create()
    folder.write_grid(FEW)
    return folder


def console(terminal: bool = False) -> tuple[Console, io.StringIO]:
    sink = io.StringIO()
    return Console(file=sink, force_terminal=terminal, width=200), sink


def end(folder: RunFolder, planned: Planned, status: str = schema.COMPLETED, error: str | None = None) -> None:
    epochs = [Epoch(1, 1.0, 50.0, 1.0, 70.0, 0.1, 600.0, 100.0)] if status == schema.COMPLETED else []
    folder.write_trial({**row(planned, status, epochs, error), "epochs": 100 if epochs else None})
    folder.trial(planned.trial.id).end_attempt()


def test_one_plain_line_for_each_trial_that_ends(sweep: RunFolder) -> None:
    where, sink = console()
    with Screen(sweep, where) as screen:
        end(sweep, FIRST)
        screen.refresh()
        screen.refresh()
        end(sweep, SECOND, schema.FAILED, "ValueError: no\nmore")
    assert sink.getvalue().splitlines() == [
        "[1/2] gap resnet20-digits seed 1: completed, best 70.00 %, 10 min; about 10 min left",
        "[2/2] gap resnet20-digits seed 2: failed, ValueError: no",
    ]


def test_what_has_ended_before_is_no_news(sweep: RunFolder) -> None:
    end(sweep, FIRST)
    where, sink = console()
    with Screen(sweep, where):
        end(sweep, SECOND)
    assert sink.getvalue().splitlines() == ["[2/2] gap resnet20-digits seed 2: completed, best 70.00 %, 10 min"]


def test_what_runs_is_told_now_and_then(sweep: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "PLAIN_EVERY_S", 0.0)
    where, sink = console()
    sweep.trial(FIRST.trial.id).write_attempt(HALF_WAY)
    with Screen(sweep, where):
        pass
    line = "gap resnet20-digits seed 1: epoch 50/100, 12.35 %, 1,234 images/s; about 15 min left"
    assert sink.getvalue().splitlines() == [line, line], "at its start and at its end"


HALF_WAY = Attempt(1, epoch=50, test_acc=12.345, epoch_s=6.0, images_per_s=1234.5)


def test_a_trial_that_starts_again_is_as_far_as_it_is(sweep: RunFolder) -> None:
    end(sweep, FIRST, schema.FAILED, "it raised")
    sweep.trial(FIRST.trial.id).write_attempt(dataclasses.replace(HALF_WAY, number=2))
    found = status(sweep)
    assert dict(found.counts) == {"running": 1, "to do": 1}
    assert found.left == "; about 15 min left"
    sweep.trial(FIRST.trial.id).write_attempt(Attempt(3))
    assert status(sweep).left == "", "nobody knows how long an epoch takes"


def test_a_worker_that_died_behind_a_row_leaves_an_ended_trial(sweep: RunFolder) -> None:
    end(sweep, FIRST)
    sweep.trial(FIRST.trial.id).write_attempt(HALF_WAY)
    assert dict(status(sweep).counts) == {"completed": 1, "to do": 1}
    sweep.tidy()
    assert not sweep.under_way()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"number": "1"}', b'{"number": 1, "epoch": "x"}', b"null"])
def test_what_no_worker_wrote_is_passed_over(sweep: RunFolder, content: bytes) -> None:
    sweep.files.write(f"attempts/{FIRST.trial.id}.json", content)
    assert dict(status(sweep).counts) == {"to do": 2}


def test_a_part_of_the_grid_is_what_its_driver_trains(sweep: RunFolder) -> None:
    with Lease(sweep, here=Driver.here({"seed": ["2"]})):
        assert str(status(sweep)) == "1 trial: 1 to do"
    assert str(status(sweep)) == "2 trials: 2 to do"


def test_a_terminal_shows_the_status(sweep: RunFolder) -> None:
    where, sink = console(terminal=True)
    sweep.trial(FIRST.trial.id).write_attempt(HALF_WAY)
    with Screen(sweep, where):
        shown = sink.getvalue()
    assert "2 trials: 1 running, 1 to do; about 15 min left" in shown
    assert "  gap resnet20-digits seed 1: epoch 50/100, 12.35 %, 1,234 images/s" in shown


def test_a_screen_keeps_up_by_itself(sweep: RunFolder) -> None:
    where, sink = console()
    with Screen(sweep, where) as screen, screen.follow(0.01):
        end(sweep, FIRST)
        deadline = time.monotonic() + 20
        while "[1/2]" not in sink.getvalue():
            assert time.monotonic() < deadline
            time.sleep(0.01)  # polls another thread
