"""The published table: through our statistics, and beside what was measured."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import results
from orchestrator.record import row
from results.__main__ import main
from results.store import schema
from results.store.folder import RunFolder
from results.table import published as tables
from results.table import render, reproduce, stats
from results.table.reproduce import AGREES, CANNOT_TELL, DIFFERS
from search_spaces import pool
from search_spaces.errors import RequestError
from search_spaces.grid import Entry, Grid, Pair
from search_spaces.recipe import Recipe

PAIRS = (Pair("resnet56", "cifar100"), Pair("vgg16bn", "cifar100"), Pair("mobilenetv2", "fmnist"))
Measure = Callable[..., RunFolder]


@pytest.fixture
def measure(tmp_path: Path) -> Measure:
    """`measure({(pool, arch): [accuracies]}, candidates)`: a run folder in which that came out, seeds as published."""

    def make(values: dict[tuple[str, str], list[float]], candidates: tuple[str, ...] = ()) -> RunFolder:
        names = dict.fromkeys(name for name, _ in values)
        entries = tuple(
            Entry(pool.expand(name)[0], "candidate" if name in candidates else "baseline") for name in names
        )
        grid = Grid("published", entries, PAIRS, (123, 42, 456), Recipe())
        run = RunFolder(tmp_path / "run")
        run.create()
        run.write_grid(grid)
        for planned in grid:
            found = values.get((planned.trial.pool.name, planned.trial.arch), [])
            position = grid.seeds.index(planned.trial.seed)
            if position < len(found):
                accuracy = {"best_test_acc": found[position], "final_test_acc": found[position] - 0.3}
                run.write_trial(row(planned, schema.COMPLETED, (), None) | accuracy)
        return run

    return make


def published() -> dict[tuple[str, str], list[float]]:
    """{(pool, arch): its three seeds} of the baselines."""
    frame = tables.load()
    frame = frame[frame["kind"] == "baseline"]
    return {
        (str(entry), str(arch)): rows.sort_values("seed", key=lambda s: s.map({123: 0, 42: 1, 456: 2}))[
            "best_test_acc"
        ].tolist()
        for (entry, arch), rows in frame.groupby(["entry", "arch"])
    }


def test_the_published_seeds_through_our_table(measure: Measure) -> None:
    run = measure(published(), candidates=("gem",))
    frame = results.load(run.path).leaderboard()
    gem = frame.query("pool == 'gem' and baseline == 'avg_max'").set_index("arch")
    assert gem.loc["resnet56", "diff"] == pytest.approx(0.793, abs=0.001)
    assert gem.loc["resnet56", "diff_lo"] == pytest.approx(-0.40, abs=0.01)
    assert gem.loc["resnet56", "diff_hi"] == pytest.approx(1.99, abs=0.01)
    assert not frame["better"].any()
    assert not frame["worse"].any(), "three seeds prove nothing here, on VGG-16 least of all"
    flagged = frame[frame["flags"].notna()].drop_duplicates("pool")
    assert flagged[["pool", "arch", "flags"]].to_numpy().tolist() == [["global_max", "mobilenetv2", "seed 123: 61.22"]]
    text = " ".join(render.to_text(render.Wide(frame)).split())
    assert "+0.79 [-0.40, +1.99]" in text
    assert "83.26 ± 19.09 (3) ⚑" in text
    assert "global_max on mobilenetv2-fmnist (seed 123: 61.22)" in text
    assert "over the 6 comparisons of candidates with baselines: none here" in text


def test_what_is_measured_as_published_agrees(measure: Measure) -> None:
    cells = reproduce.compare(results.load(measure(published()).path).trials(), tables.load())
    assert len(cells) == 9
    by_name = {(cell.published.name, cell.arch): cell for cell in cells}
    for (name, arch), cell in by_name.items():
        if arch == "resnet56" or (arch == "mobilenetv2" and name != "global_max"):
            assert cell.difference.diff == pytest.approx(0, abs=1e-9)
    assert by_name["gem", "mobilenetv2"].verdict == AGREES
    assert by_name["gem", "resnet56"].verdict == CANNOT_TELL, "its runs lie 0.79 points apart"
    half = 2.200985 * 0.793351 * math.sqrt(2 / 3)  # Student's t of the 11 degrees of freedom of 15 published runs
    assert by_name["gem", "resnet56"].difference.hi == pytest.approx(half, abs=1e-4)


def test_a_published_run_far_from_its_siblings_is_named_and_left_out(measure: Measure) -> None:
    run = measure({("global_max", "mobilenetv2"): [94.2, 94.3, 94.4]})
    (cell,) = reproduce.compare(results.load(run.path).trials(), tables.load())
    assert (cell.published.far, cell.published.values.tolist()) == ((61.22,), [94.27, 94.29])
    assert cell.verdict == AGREES
    assert "94.28 ± 0.01 (2), without 61.22, far off" in reproduce.to_text([cell])


def test_of_one_position_the_published_runs_of_the_baselines_are_taken_together(measure: Measure) -> None:
    """By hand: 9 runs of the benchmark's and 3 of the sister task's, all of one function."""
    frame = tables.load()
    here = frame[frame["arch"].eq("vgg16bn") & frame["kind"].isin(["baseline", "sister"])]["best_test_acc"]
    run = measure({(name, "vgg16bn"): [73.0, 74.0] for name in ("gap", "gem", "global_max", "avg_max")})
    cells = reproduce.compare(results.load(run.path).trials(), tables.load())
    assert len(cells) == 4
    for cell in cells:
        assert (len(cell.published.values), cell.measured.n) == (12, 2)
        assert cell.published.values.mean() == pytest.approx(here.mean())
        assert (cell.spread.std, cell.spread.degrees, cell.spread.runs) == (pytest.approx(here.std(ddof=1)), 11, 12)
        assert cell.difference.diff == pytest.approx(73.5 - here.mean())
    said = " ".join(reproduce.to_text(cells).split())
    assert "avg_max, gap, gem and global_max are one function: their published runs are taken together" in said
    assert "vgg16bn-cifar100 0.69 (12 runs)" in said


def test_a_single_run_is_not_compared_with_a_single_run(tmp_path: Path) -> None:
    """LCGP on VGG: 71.66 is one published run. Two of ours can be compared with it, one cannot."""
    lcgp = Entry(dataclasses.replace(pool.expand("gated")[0], label="deepseek-reasoner agent"))
    verdicts = {}
    for seeds in ((1,), (1, 2)):
        grid = Grid("one", (lcgp,), PAIRS[1:2], seeds, Recipe())
        run = RunFolder(tmp_path / str(len(seeds)))
        run.create()
        for planned in grid:
            run.write_trial(row(planned, schema.COMPLETED, (), None) | {"best_test_acc": 75.0, "final_test_acc": 75.0})
        (cell,) = reproduce.compare(results.load(run.path).trials(), tables.load())
        verdicts[len(seeds)] = (cell.verdict, math.isnan(cell.difference.lo))
        assert cell.published.name == "deepseek-reasoner agent"
    assert verdicts == {1: (CANNOT_TELL, True), 2: (DIFFERS, False)}


def test_what_learned_nothing_is_counted_on_both_sides(tmp_path: Path) -> None:
    cap = Entry(dataclasses.replace(pool.expand("gated")[0], label="deepseek-reasoner vanilla"))
    run = RunFolder(tmp_path / "run")
    run.create()
    for planned, status in zip(
        Grid("lost", (cap,), PAIRS[1:2], (1, 2, 3), Recipe()),
        (schema.DIVERGED, schema.COLLAPSED, schema.COLLAPSED),
        strict=True,
    ):
        run.write_trial(row(planned, status, (), None) | {"best_test_acc": 1.0, "final_test_acc": 1.0})
    (cell,) = reproduce.compare(results.load(run.path).trials(), tables.load())
    assert (cell.published.lost, cell.measured_lost, cell.verdict) == (1, 3, CANNOT_TELL)
    said = reproduce.to_text([cell])
    assert "1 diverged or collapsed" in said
    assert "3 diverged or collapsed" in said


def test_what_the_gate_refused_stands_beside_what_was_published(tmp_path: Path) -> None:
    """CAP: 72.66, 1.00 and 94.50, of which the 1.00 takes no GPU hour to reproduce."""
    cap = Entry(dataclasses.replace(pool.expand("gated")[0], label="deepseek-reasoner vanilla"))
    run = RunFolder(tmp_path / "run")
    run.create()
    for planned in Grid("cap", (cap,), PAIRS, (1, 2), Recipe()):
        if planned.trial.arch == "vgg16bn":
            run.write_trial(row(planned, schema.INVALID, (), "its output is not finite"))
        else:
            found = {"best_test_acc": 80.0, "final_test_acc": 80.0}
            run.write_trial(row(planned, schema.COMPLETED, (), None) | found)
    cells = reproduce.compare(results.load(run.path).trials(), tables.load())
    assert [(cell.arch, cell.refused, cell.verdict) for cell in cells] == [
        ("resnet56", 0, DIFFERS),
        ("vgg16bn", 2, CANNOT_TELL),
        ("mobilenetv2", 0, DIFFERS),
    ]
    (line,) = (line for line in reproduce.to_text(cells).splitlines() if "vgg16bn" in line and "refused" in line)
    assert "1 diverged or collapsed" in line
    assert "2 refused by the gate" in line


def test_verdicts_follow_the_rule() -> None:
    def difference(lo: float, hi: float) -> stats.Difference:
        return stats.Difference(3, (lo + hi) / 2, lo, hi, 0.5)

    assert reproduce.verdict(difference(-0.9, 0.8), 1.0) == AGREES
    assert reproduce.verdict(difference(-1.1, 0.8), 1.0) == CANNOT_TELL
    assert reproduce.verdict(difference(0.1, 0.3), 1.0) == DIFFERS
    assert reproduce.verdict(difference(math.nan, math.nan), 1.0) == CANNOT_TELL


def test_another_papers_table(measure: Measure, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where a table does not say which rows are baselines, the spread is that of all; chance level is no result."""
    other = tmp_path / "other.csv"
    other.write_text(
        "entry,arch,dataset,seed,best_test_acc\n"
        "gap,resnet56,cifar100,,72.0\n"
        "gem,resnet56,cifar100,1,72.3\ngem,resnet56,cifar100,2,72.5\ngem,resnet56,cifar100,3,72.1\n"
        "softpool,resnet56,cifar100,,1.00\n"
    )
    measured = {(name, "resnet56"): [72.1, 72.4, 71.9] for name in ("gap", "gem", "softpool")}
    run = measure(measured)
    gap, gem, softpool = reproduce.compare(results.load(run.path).trials(), tables.load(other))
    assert (gap.spread.std, gap.spread.degrees) == (pytest.approx(0.2), 2)
    half = 4.302653 * 0.2 * math.sqrt(1 / 3 + 1)  # t of the two degrees of freedom that gem's three seeds leave
    assert gap.difference.diff == pytest.approx(0.1333, abs=1e-3)
    assert gap.difference.hi - gap.difference.diff == pytest.approx(half, abs=1e-3)
    assert gem.verdict == AGREES
    assert (softpool.published.lost, softpool.verdict) == (1, CANNOT_TELL)
    assert main(["reproduce", str(run.path), "--against", str(other)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "1 diverged or collapsed" in said
    assert "MLS-Bench" not in said
    assert "3 cells that are both published and measured: 1 agrees, 2 cannot tell." in said
    assert "reaches no further than 1 point" in said
    assert main(["reproduce", str(run.path), "--against", str(other), "--format", "csv"]) == 0
    assert capsys.readouterr().out.count("\n") == 4


def test_a_table_that_cannot_be_read(tmp_path: Path) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("entry,arch\ngap,resnet56\n")
    with pytest.raises(RequestError, match="got no column dataset, best_test_acc"):
        tables.load(bad)
    bad.write_text("entry,arch,dataset,best_test_acc\ngap,resnet56,cifar100,many\n")
    with pytest.raises(RequestError, match="line 2: expected a percentage for best_test_acc, got 'many'"):
        tables.load(bad)
    with pytest.raises(RequestError, match="cannot be read"):
        tables.load(tmp_path / "none.csv")
    for value, says in (("170", "outside of 0 to 100"), ("0.72", "fractions")):
        bad.write_text(f"entry,arch,dataset,best_test_acc\ngap,resnet56,cifar100,{value}\n")
        with pytest.raises(RequestError, match=says):
            tables.load(bad)


def test_recipes_and_revisions_are_not_pooled(measure: Measure) -> None:
    trials = results.load(measure(published()).path).trials()
    with pytest.raises(RequestError, match="recipes"):
        reproduce.compare(pd.concat([trials, trials.assign(protocol=99)]), tables.load())
    with pytest.raises(RequestError, match="several pools or revisions"):
        reproduce.compare(pd.concat([trials, trials.assign(pool_revision="x")]), tables.load())
    with pytest.raises(RequestError, match="above 0"):
        reproduce.compare(trials, tables.load(), margin=-1)


def test_the_shipped_table_is_whole() -> None:
    frame = tables.load()
    assert len(frame) == 75
    assert frame.groupby("kind").size().to_dict() == {"agent": 15, "baseline": 27, "sister": 18, "vanilla": 15}
    assert np.isclose(frame["best_test_acc"], 1.0).sum() == 5
    assert isinstance(frame, pd.DataFrame)
