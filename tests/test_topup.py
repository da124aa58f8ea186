"""Seeds that are added after looking."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import results
from orchestrator import cli
from orchestrator.plan import make_plan
from orchestrator.record import row
from results.__main__ import main
from results.store import schema
from results.store.folder import RunFolder
from results.table import stats, topup
from search_spaces import space as spaces
from search_spaces.equivalence import Equivalence
from search_spaces.grid import Grid, Planned

SPACE = """
name: looked
recipe: {epochs: 2}
architectures: [resnet20, resnet32, resnet44]
datasets: [digits]
pools:
  - {name: gap, role: baseline}
  - {name: global_max, role: baseline}
  - gem(p=2)
  - {file: mine.py}
seeds: [3, 4, 5]
"""
# Gain over gap by (pool, arch): settled, open and wide, open and narrow.
GAINS = {
    ("gem(p=2)", "resnet20"): [2.0, 2.1, 2.2],
    ("gem(p=2)", "resnet32"): [9.0, -9.0, 0.0],
    ("gem(p=2)", "resnet44"): [0.5, -0.3, 0.1],
    ("mine", "resnet44"): [0.2, -0.1, 0.0],
}


@pytest.fixture(autouse=True)
def _filled(tmp_path: Path, run: RunFolder) -> None:
    (tmp_path / "mine.py").write_text("class CustomPool: ...\n")
    grid = grid_with(tmp_path, [3, 4, 5])
    run.write_grid(grid)
    for planned in grid:
        run.write_trial(measured(planned))


def grid_with(tmp_path: Path, seeds: list[int]) -> Grid:
    path = tmp_path / "space.yaml"
    path.write_text(SPACE.replace("[3, 4, 5]", str(seeds)))
    return spaces.load(path).grid


def measured(planned: Planned) -> dict[str, Any]:
    trial = planned.trial
    gains = GAINS.get((trial.pool.label, trial.arch), [-1.0, -1.1, -0.8] if trial.pool.name != "gap" else [0.0] * 3)
    value = 90 + trial.seed / 10 + gains[(trial.seed - 3) % 3]
    return row(planned, schema.COMPLETED, (), None) | {"best_test_acc": value, "final_test_acc": value}


def test_only_what_is_open_and_can_be_settled(run: RunFolder) -> None:
    found = {(one.pool, one.arch): one for one in topup.still_open(results.load(run.path).leaderboard())}
    assert set(found) == {("gem(p=2)", "resnet32"), ("gem(p=2)", "resnet44"), ("mine", "resnet44")}
    assert found["gem(p=2)", "resnet32"].seeds is None, "with a spread of nine points"
    narrow = found["gem(p=2)", "resnet44"]
    std = float(np.std(GAINS["gem(p=2)", "resnet44"], ddof=1))
    assert narrow.std == pytest.approx(std)
    assert narrow.seeds == stats.seeds_needed(0.5, std, alpha=0.05 / 12)
    assert found["mine", "resnet44"].seeds in range(4, 10)


def test_the_line_adds_these_seeds_and_nothing_else(
    run: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["topup", str(run.path), "--target", "0.5"]) == 0
    said = capsys.readouterr().out
    assert "gem(p=2) against gap on resnet32-digits: +0.00 over 3 seeds, more are needed than --most allows" in said
    (line,) = (line for line in said.splitlines() if line.startswith("python run_sweep.py"))
    options = shlex.split(line.replace("YOURS", "space.yaml"))[2:]
    monkeypatch.chdir(run.path.parent)
    assert cli.main([*options, "--plan"]) == 0
    plan = make_plan(spaces.load(Path("space.yaml"), [options[5]]), run, only=cli._only(options[7]))
    needed = stats.seeds_needed(0.5, float(np.std(GAINS["gem(p=2)", "resnet44"], ddof=1)), alpha=0.05 / 12)
    assert needed is not None
    assert {(p.trial.pool.label, p.trial.arch) for p in plan.planned} == {
        ("gap", "resnet44"),
        ("gem(p=2)", "resnet44"),
        ("mine", "resnet44"),
    }
    assert sorted({p.trial.seed for p in plan.todo}) == list(range(6, 3 + needed))
    assert len(plan.ended) == 9, "what is on record is not trained again"
    for planned in plan.todo:
        run.write_trial(measured(planned))
    frame = results.load(run.path).leaderboard()
    assert frame.query("pool == 'mine' and arch == 'resnet44'")["n"].eq(needed).all()


def column(run: RunFolder, target: float = 0.5) -> topup.Column:
    (found,) = (one for one in results.load(run.path).topup(target) if one.arch == "resnet44")
    return found


def test_a_seed_that_collapsed_is_made_up_for(run: RunFolder, tmp_path: Path) -> None:
    """It is on record, and no pair came of it: another takes its place."""
    for planned in grid_with(tmp_path, [6]):
        lost = planned.trial.pool.label == "gem(p=2)"
        run.write_trial(measured(planned) | ({"status": schema.COLLAPSED} if lost else {}))
    found = column(run)
    (one,) = (each for each in found.comparisons if each.pool == "gem(p=2)")
    assert (one.n, one.lacks) == (3, found.added)
    assert found.seeds == [3, 4, 5, 6, *range(7, 7 + found.added)]


def test_every_table_says_so_once_they_are_trained_and_a_second_time_goes_on(run: RunFolder, tmp_path: Path) -> None:
    loaded = results.load(run.path)
    first = column(run, 0.8)
    assert not loaded.notes(), "who only asks has not looked and added"
    todo = [planned for planned in grid_with(tmp_path, [*first.seeds]) if planned.trial.arch == "resnet44"]
    added = next(planned for planned in todo if planned.trial.id not in run.ended())
    run.write_trial(measured(added))
    text = " ".join(loaded.leaderboard(format="text").split())
    assert "Seeds were added after looking on resnet44-digits: intervals and p there err more often" in text
    for planned in todo:
        run.write_trial(measured(planned))
    again = column(run)
    assert again.seeds[: -again.added] == first.seeds
    assert again.seeds[-again.added] == first.seeds[-1] + 1


def test_hidden_columns_and_one_function_are_left_alone(run: RunFolder) -> None:
    frame = results.load(run.path).leaderboard()
    assert topup.still_open(frame.assign(hidden=True)) == []
    same = [Equivalence("resnet44", ("gap", "gem(p=2)", "mine"), {"mine": ("weight",)})]
    assert {(one.pool, one.arch) for one in topup.still_open(frame, same=same)} == {
        ("gem(p=2)", "resnet32"),
        ("mine", "resnet44"),
    }


def test_what_makes_no_sense_is_refused(run: RunFolder) -> None:
    for wrong in (["--target", "0"], ["--target", "nan"], ["--most", "1"]):
        assert main(["topup", str(run.path), *wrong]) == 2


def test_where_nothing_can_be_settled_nothing_is_recorded(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topup", str(run.path), "--target", "0.001"]) == 0
    assert "nothing that more seeds could settle" in capsys.readouterr().out
    assert not run.topups.read()
