"""Trials that learn nothing: told apart by their accuracy, counted and named, and in no mean."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
from scipy import stats as scipy_stats

import results
from orchestrator.plan import make_plan
from orchestrator.record import Job
from orchestrator.worker import run_pack
from results import __main__
from results.store.folder import RunFolder
from search_spaces import chance, pool
from search_spaces import space as spaces
from search_spaces.grid import BASELINE, Entry, Grid, Pair
from search_spaces.recipe import Recipe
from trainer.data import Dataset
from trainer.outcome import Epoch, collapsed

DEAD = (
    "from torch import nn\nclass CustomPool(nn.Module):\n    def forward(self, x):\n        return x.mean((2, 3)) * 0\n"
)


@pytest.mark.parametrize("classes", [2, 7, 10, 100, 1000])
@pytest.mark.parametrize("images", [1, 2, 10, 359, 10_000])
def test_the_bound_is_the_binomials(classes: int, images: int) -> None:
    assert chance.most_hits(classes, images) == scipy_stats.binom.ppf(0.999, images, 1 / classes)


def history(*accuracies: float, loss: float = 2.3) -> list[Epoch]:
    return [Epoch(n, 2.3, 10.0, loss, acc, 0.1, 1.0, None) for n, acc in enumerate(accuracies, start=1)]


def test_a_trial_has_collapsed_if_its_best_epoch_is_no_better_than_guessing() -> None:
    """Of CIFAR-100's 10,000 test images 132 may be guessed; of 79 public runs on VGG-16 the lost ones read 1.00."""
    assert collapsed(history(1.0, 1.0, 1.0), 100, 10_000)
    assert collapsed(history(1.0, 1.32, 1.0), 100, 10_000)
    assert not collapsed(history(1.0, 1.33, 1.0), 100, 10_000)
    assert not collapsed(history(1.0, 40.0, 1.0), 100, 10_000), "it did learn, and lost it again"
    assert not collapsed(history(1.0, 1.0, loss=float("nan")), 100, 10_000), "that is diverged"
    for hits in range(41):  # exact in hits, however the percentage rounds
        assert chance.is_guessing(100 * hits / 359, 10, 359) == (hits <= 55)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, digits: Dataset) -> Path:
    """A pool that learns, and one that passes nothing on, two seeds each."""
    path = tmp_path_factory.mktemp("chance")
    (path / "dead.py").write_text(DEAD)
    entries = (Entry(pool.expand("gap")[0], BASELINE), Entry(pool.expand(str(path / "dead.py"))[0]))
    recipe = Recipe(epochs=2, batch_size=16, lr=0.02, train_samples=400, test_samples=200)
    folder = RunFolder(path / "run")
    folder.create()
    grid = Grid("chance", entries, (Pair("resnet20", "digits"),), (1, 2), recipe)
    folder.write_grid(grid)
    job = Job(folder.where)
    run_pack(list(grid), digits, job)
    return folder.path


@pytest.fixture
def run(made: Path, tmp_path: Path) -> RunFolder:
    """A copy of it."""
    shutil.copy(made.parent / "dead.py", tmp_path)
    return RunFolder(shutil.copytree(made, tmp_path / "run"))


def test_it_is_a_status_of_its_own(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trials = results.load(run.path).trials()
    outcome = trials[["pool", "status", "epochs", "test_images"]].drop_duplicates().to_numpy().tolist()
    assert sorted(outcome) == [["dead", "collapsed", 2, 200], ["gap", "completed", 2, 200]]
    assert trials["best_test_acc"].notna().all()
    assert trials["error"].isna().all()
    log = run.trial(trials.query("pool == 'dead'")["trial_id"].iloc[0]).log_text() or ""
    assert "collapsed: no epoch is better than guessing, the best has a test accuracy of " in log
    assert "Final metrics (resnet20-digits)" in log
    assert not list((run.path / "checkpoints").iterdir())

    (row,) = results.load(run.path).leaderboard().query("pool == 'dead'").to_dict("records")
    assert (row["n"], row["collapsed"], row["n_pairs"], row["completed"]) == (0, 2, 0, 0)
    for command, says in (
        ("status", "2 completed, 2 collapsed"),
        ("verify", "all is well"),
        ("leaderboard", "Collapsed, not in any mean: dead on resnet20-digits (2)."),
    ):
        assert __main__.main([command, str(run.path)]) == 0
        assert says in " ".join(capsys.readouterr().out.split())
    assert __main__.main(["report", str(run.path)]) == 0
    assert "collapsed" in (run.path / "report.html").read_text()


def test_it_is_never_trained_again(run: RunFolder, tmp_path: Path, digits: Dataset) -> None:
    (tmp_path / "space.yaml").write_text(
        "name: chance\nrecipe: {epochs: 2, batch_size: 16, lr: 0.02, train_samples: 400, test_samples: 200}\n"
        "pairs: [{arch: resnet20, dataset: digits}]\npools: [{name: gap, role: baseline}, {file: dead.py}]\n"
        "seeds: [1, 2, 3]\n"
    )
    plan = make_plan(spaces.load(tmp_path / "space.yaml"), run, retry_failed=True)
    assert [planned.trial.seed for planned in plan.todo] == [3, 3]
    before = {path: path.stat().st_mtime_ns for path in (run.path / "trials").iterdir()}
    job = Job(run.where)
    old = [planned for planned in plan.planned if planned not in plan.todo]
    run_pack(old, digits, job)
    assert sorted(one.status for one in run.ended().values()) == ["collapsed", "collapsed", "completed", "completed"]
    assert {path: path.stat().st_mtime_ns for path in (run.path / "trials").iterdir()} == before


@pytest.mark.soak
def test_the_command_says_so_and_ends_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from trainer.__main__ import main

    options = "--arch resnet20 --dataset digits --pool gap --seed 3 --set epochs=1 --set train_samples=32"
    assert main([*options.split(), "--set", "test_samples=50"]) == 1
    assert "collapsed: no epoch is better than guessing" in capsys.readouterr().out


def test_a_table_without_the_column_reads_as_before(run: RunFolder) -> None:
    """Rows of protocol 1 have no number of test images, and their status stands."""
    found = run.trials.read().to_pylist()[0]
    del found["test_images"]
    run.write_trial(found)
    assert pd.isna(results.load(run.path).trials(trial_id=found["trial_id"])["test_images"].iloc[0])
    assert __main__.main(["verify", str(run.path)]) == 0
