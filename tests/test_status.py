"""How far a sweep is, from its folder alone."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from orchestrator.record import epoch_rows, row
from results.__main__ import main
from results.status import status
from results.store import schema
from results.store.folder import RunFolder
from search_spaces import pool
from search_spaces.errors import RequestError
from search_spaces.grid import Entry, Grid, Pair, Planned
from search_spaces.recipe import Recipe
from trainer.epoch import Epoch

GRID = Grid(
    "g",
    (Entry(pool.expand("gap")[0], "baseline"), Entry(pool.expand("gem")[0])),
    (Pair("resnet20", "digits"), Pair("vgg11bn", "digits", hidden=True)),
    (1, 2, 3),
    Recipe(epochs=4),
)


def history(epochs: int) -> list[Epoch]:
    return [Epoch(n, 1.0, 50.0, 1.0, 60.0 + n, 0.1, 10.0, 100.0) for n in range(1, epochs + 1)]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """One completed, one failed, one running at its second epoch, one that stopped long ago, and the rest to do."""
    folder = RunFolder(tmp_path / "run")
    folder.create()
    folder.write_grid(GRID)
    completed, failed, running, stopped = (p for p in GRID if not p.hidden and p.trial.seed < 3)

    def begin(planned: Planned, epochs: int) -> None:
        folder.open_log(planned.trial.id).close()
        folder.write_epochs(planned.trial.id, epoch_rows(planned.trial, history(epochs)))

    for planned, epochs in ((completed, 4), (failed, 1), (running, 2), (stopped, 3)):
        begin(planned, epochs)
    folder.write_trial(row(completed, schema.COMPLETED, history(4), None))
    folder.write_trial(row(failed, schema.FAILED, history(1), "ValueError: no\nand more"))
    long_ago = time.time() - 7200
    for path in (
        folder.path / "logs" / f"{stopped.trial.id}.log",
        folder.path / "epochs" / f"{stopped.trial.id}.parquet",
    ):
        os.utime(path, (long_ago, long_ago))
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
    assert [(one.epoch, one.test_acc) for one in found.unfinished] == [(2, 62.0), (3, 63.0)]
    # 10 s an epoch: 2 epochs of the running one, 1 of the stopped one, 4 each of the two that have not begun.
    assert found.left_s == pytest.approx(10 * (2 + 1 + 8))
    said = str(found)
    assert "12 trials: 1 completed, 1 running, 2 to do, 1 stopped, 1 failed, 6 withheld; about 2 min left" in said
    assert "epoch 2/4, 62.00 %\n" in said
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
    assert main(["watch", str(run.path), "--every", "0.01"]) == 0
    said = capsys.readouterr().out
    assert "resnet20-digits" in said
    assert "6 completed, 6 withheld" in said
