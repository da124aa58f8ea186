"""The published table: through our statistics, and beside what was measured."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import results
from orchestrator.record import row
from results.__main__ import main
from results.store import schema
from results.store.folder import RunFolder
from results.table import published as tables
from results.table import reproduce
from results.table.reproduce import AGREES, CANNOT_TELL, DIFFERS
from search_spaces import pool
from search_spaces.errors import RequestError
from search_spaces.grid import Entry, Grid, Pair
from search_spaces.recipe import Recipe

PAIRS = (Pair("resnet56", "cifar100"), Pair("vgg16bn", "cifar100"), Pair("mobilenetv2", "fmnist"))
SEEDS = (123, 42, 456)  # as published
CAP, LCGP = "deepseek-reasoner vanilla", "deepseek-reasoner agent"
Measure = Callable[..., results.Run]


@pytest.fixture
def measure(tmp_path: Path) -> Measure:
    """`measure({(pool, arch): [accuracy or status of each seed]}, candidates)`: a run in which that came out."""

    def make(outcomes: Mapping[tuple[str, str], Sequence[float | str]], candidates: Sequence[str] = ()) -> results.Run:
        entries = []
        for label in dict.fromkeys(label for label, _ in outcomes):
            code = pool.expand(label if label in pool.names() else "gated")[0]
            role = "candidate" if label in candidates else "baseline"
            entries.append(Entry(dataclasses.replace(code, label=label), role))
        grid = Grid("published", tuple(entries), PAIRS, SEEDS, Recipe())
        run = RunFolder(tmp_path / "run")
        run.create()
        run.write_grid(grid)
        for planned in grid:
            found = outcomes.get((planned.trial.pool.label, planned.trial.arch), [])
            position = SEEDS.index(planned.trial.seed)
            if position >= len(found):
                continue
            if isinstance(outcome := found[position], str):
                run.write_trial(row(planned, outcome, (), None))
            else:
                accuracy = {"best_test_acc": outcome, "final_test_acc": outcome - 0.3}
                run.write_trial(row(planned, schema.COMPLETED, (), None) | accuracy)
        return results.load(run.path)

    return make


def published() -> dict[tuple[str, str], list[float]]:
    """{(pool, arch): its three seeds} of the baselines."""
    frame = tables.load()
    frame = frame[frame["kind"] == "baseline"].set_index("seed")
    groups = frame.groupby(["entry", "arch"])["best_test_acc"]
    return {(str(entry), str(arch)): [values[seed] for seed in SEEDS] for (entry, arch), values in groups}


def text(run: results.Run, **arguments: Any) -> str:
    return " ".join(run.reproduce(format="text", **arguments).split())


def test_the_published_seeds_through_our_table(measure: Measure) -> None:
    run = measure(published(), candidates=("gem",))
    frame = run.leaderboard()
    gem = frame.query("pool == 'gem' and baseline == 'avg_max'").set_index("arch")
    assert gem.loc["resnet56", "diff"] == pytest.approx(0.793, abs=0.001)
    assert gem.loc["resnet56", "diff_lo"] == pytest.approx(-0.40, abs=0.01)
    assert gem.loc["resnet56", "diff_hi"] == pytest.approx(1.99, abs=0.01)
    assert not frame["better"].any()
    assert not frame["worse"].any(), "three seeds prove nothing here, on VGG-16 least of all"
    flagged = frame[frame["flags"].notna()].drop_duplicates("pool")
    assert flagged[["pool", "arch", "flags"]].to_numpy().tolist() == [["global_max", "mobilenetv2", "seed 123: 61.22"]]
    said = " ".join(run.leaderboard(format="text").split())
    for part in (
        "+0.79 [-0.40, +1.99]",
        "83.26 ± 19.09 (3) ⚑",
        "global_max on mobilenetv2-fmnist (seed 123: 61.22)",
        "over the 6 comparisons of candidates with baselines: none here",
    ):
        assert part in said


def test_what_is_measured_as_published_agrees(measure: Measure) -> None:
    frame = measure(published()).reproduce().set_index(["entry", "arch"])
    assert len(frame) == 9
    alike = frame.query("arch == 'resnet56' or (arch == 'mobilenetv2' and entry != 'global_max')")
    assert alike["diff"].to_numpy() == pytest.approx(0, abs=1e-9)
    assert frame["verdict"]["gem", "mobilenetv2"] == AGREES
    assert frame["verdict"]["gem", "resnet56"] == CANNOT_TELL, "its runs lie 0.79 points apart"
    half = 2.200985 * 0.793351 * math.sqrt(2 / 3)  # Student's t of the 11 degrees of freedom of 15 published runs
    assert frame["hi"]["gem", "resnet56"] == pytest.approx(half, abs=1e-4)


def test_a_published_run_far_from_its_siblings_is_named_and_left_out(measure: Measure) -> None:
    run = measure({("global_max", "mobilenetv2"): [94.2, 94.3, 94.4]})
    (found,) = run.reproduce().to_dict("records")
    assert (found["published_flags"], found["published_n"], found["verdict"]) == ("61.22", 2, AGREES)
    assert "94.28 ± 0.01 (2), without 61.22, far off" in text(run)


def test_of_one_position_the_published_runs_of_the_baselines_are_taken_together(measure: Measure) -> None:
    """By hand: 9 runs of the benchmark's and 3 of the sister task's, all of one function."""
    frame = tables.load()
    here = frame[frame["arch"].eq("vgg16bn") & frame["kind"].isin(["baseline", "sister"])]["best_test_acc"]
    run = measure({(name, "vgg16bn"): [73.0, 74.0] for name in ("gap", "gem", "global_max", "avg_max")})
    found = run.reproduce()
    assert (len(found), {*found["published_n"]}, {*found["measured_n"]}) == (4, {12}, {2})
    assert found["published_mean"].to_numpy() == pytest.approx(here.mean())
    assert found["spread"].to_numpy() == pytest.approx(here.std(ddof=1))
    assert found["diff"].to_numpy() == pytest.approx(73.5 - here.mean())
    spread = tables.spreads()["vgg16bn", "cifar100"]
    assert (spread.degrees, spread.runs) == (11, 12)
    said = text(run)
    assert "avg_max, gap, gem and global_max are one function: their published runs are taken together" in said
    assert "vgg16bn-cifar100 0.69 (12 runs)" in said


@pytest.mark.parametrize(("measured", "verdict"), [([75.0], CANNOT_TELL), ([75.0, 75.0], DIFFERS)])
def test_a_single_run_is_not_compared_with_a_single_run(measure: Measure, measured: list[float], verdict: str) -> None:
    """LCGP on VGG: 71.66 is one published run."""
    (found,) = measure({(LCGP, "vgg16bn"): measured}).reproduce().to_dict("records")
    assert (found["entry"], found["verdict"], math.isnan(found["lo"])) == (LCGP, verdict, len(measured) == 1)


def test_what_has_no_accuracy_is_counted_on_both_sides(measure: Measure) -> None:
    """CAP: 72.66, 1.00 and 94.50, of which the 1.00 takes no GPU hour to reproduce where the gate refuses it."""
    lost = ["diverged", "collapsed", "invalid"]
    run = measure({(CAP, "resnet56"): [80.0, 80.0], (CAP, "vgg16bn"): lost, (CAP, "mobilenetv2"): [80.0, 80.0]})
    columns = ["arch", "published_lost", "measured_lost", "measured_refused", "verdict"]
    assert run.reproduce()[columns].to_numpy().tolist() == [
        ["resnet56", 0, 0, 0, DIFFERS],
        ["vgg16bn", 1, 2, 1, CANNOT_TELL],
        ["mobilenetv2", 0, 0, 0, DIFFERS],
    ]
    said = text(run)
    assert "1 diverged or collapsed" in said
    assert "2 diverged or collapsed, 1 refused by the gate" in said


@pytest.mark.parametrize(
    ("lo", "hi", "verdict"),
    [(-0.9, 0.8, AGREES), (-1.1, 0.8, CANNOT_TELL), (0.1, 0.3, DIFFERS), (math.nan, math.nan, CANNOT_TELL)],
)
def test_verdicts_follow_the_rule(lo: float, hi: float, verdict: str) -> None:
    assert reproduce.verdict(lo, hi, 1.0) == verdict


def test_another_papers_table(measure: Measure, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where a table does not say which rows are baselines, the spread is that of all; chance level is no result."""
    other = tmp_path / "other.csv"
    other.write_text(
        "entry,arch,dataset,seed,best_test_acc\n"
        "gap,resnet56,cifar100,,72.0\n"
        "gem,resnet56,cifar100,1,72.3\ngem,resnet56,cifar100,2,72.5\ngem,resnet56,cifar100,3,72.1\n"
        "softpool,resnet56,cifar100,,1.00\n"
    )
    run = measure({(name, "resnet56"): [72.1, 72.4, 71.9] for name in ("gap", "gem", "softpool")})
    gap, gem, softpool = run.reproduce(other).to_dict("records")
    assert gap["spread"] == pytest.approx(0.2)
    half = 4.302653 * 0.2 * math.sqrt(1 / 3 + 1)  # t of the two degrees of freedom that gem's three seeds leave
    assert gap["diff"] == pytest.approx(0.1333, abs=1e-3)
    assert gap["hi"] - gap["diff"] == pytest.approx(half, abs=1e-3)
    assert gem["verdict"] == AGREES
    assert (softpool["published_lost"], softpool["verdict"]) == (1, CANNOT_TELL)
    command = ["reproduce", str(run.folder.path), "--against", str(other)]
    assert main(command) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "1 diverged or collapsed" in said
    assert "MLS-Bench" not in said
    assert "3 cells that are both published and measured: 1 agrees, 2 cannot tell." in said
    assert "reaches no further than 1 point" in said
    for format, rows in (("csv", ",resnet56,"), ("markdown", "| resnet56 |"), ("latex", "& resnet56 &")):
        assert main([*command, "--format", format]) == 0
        assert capsys.readouterr().out.count(rows) == 3


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("entry,arch\ngap,resnet56\n", "got no column dataset, best_test_acc"),
        ("entry,arch,dataset,best_test_acc\ngap,a,b,many\n", "line 2: expected a percentage .* got 'many'"),
        ("entry,arch,dataset,best_test_acc\ngap,a,b,1.5\ngap,a,b,170\n", "line 3: expected a percentage .* got 170"),
        ("entry,arch,dataset,best_test_acc\ngap,a,b,0.72\n", "fractions"),
        ("entry,arch,dataset,best_test_acc\ngap,,b,72\n", "rows without arch"),
        (None, "cannot be read"),
    ],
)
def test_a_table_that_cannot_be_read(tmp_path: Path, table: str | None, says: str) -> None:
    if table:
        (tmp_path / "bad.csv").write_text(table)
    with pytest.raises(RequestError, match=says):
        tables.load(tmp_path / "bad.csv")


def test_recipes_and_revisions_are_not_pooled(measure: Measure) -> None:
    trials = measure(published()).trials()
    with pytest.raises(RequestError, match="recipes"):
        reproduce.compare(pd.concat([trials, trials.assign(protocol=99)]), tables.load())
    with pytest.raises(RequestError, match="several pools or revisions"):
        reproduce.compare(pd.concat([trials, trials.assign(pool_revision="x")]), tables.load())
    with pytest.raises(RequestError, match="above 0"):
        reproduce.compare(trials, tables.load(), margin=-1)


def test_the_shipped_table_is_whole() -> None:
    frame = tables.load()
    assert frame.groupby("kind").size().to_dict() == {"agent": 15, "baseline": 27, "sister": 18, "vanilla": 15}
    assert np.isclose(frame["best_test_acc"], 1.0).sum() == 5
