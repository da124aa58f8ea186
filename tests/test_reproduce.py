"""The published table: through our statistics, and beside what was measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import results
from orchestrator.record import row
from results import reproduce, schema, stats, views
from results.__main__ import main
from results.reproduce import AGREES, CANNOT_TELL, DIFFERS
from results.store import RunFolder
from trainer import pool
from trainer.grid import Entry, Grid, Pair
from trainer.problems import RequestError
from trainer.recipe import Recipe

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
    frame = reproduce.load_published()
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
    text = " ".join(views.to_text(frame, "best_test_acc").split())
    assert "+0.79 [-0.40, +1.99]" in text
    assert "83.26 ± 19.09 (3) ⚑" in text
    assert "global_max on mobilenetv2-fmnist (seed 123: 61.22)" in text
    assert "over the 6 comparisons of candidates with baselines: none here" in text


def test_what_is_measured_as_published_agrees(measure: Measure) -> None:
    cells = reproduce.compare(results.load(measure(published()).path).trials(), reproduce.load_published())
    assert len(cells) == 9
    assert all(cell.diff == pytest.approx(0, abs=1e-9) for cell in cells)
    by_name = {(cell.entry, cell.arch): cell for cell in cells}
    assert by_name["gem", "resnet56"].verdict == AGREES
    assert by_name["global_max", "mobilenetv2"].verdict == CANNOT_TELL
    assert by_name["global_max", "mobilenetv2"].published_flags == "61.22"


def test_verdicts_follow_the_rule() -> None:
    def difference(lo: float, hi: float) -> stats.Difference:
        return stats.Difference(3, (lo + hi) / 2, lo, hi, 0.5)

    assert reproduce.verdict(difference(-0.9, 0.8), 1.0) == AGREES
    assert reproduce.verdict(difference(-1.1, 0.8), 1.0) == CANNOT_TELL
    assert reproduce.verdict(difference(0.1, 0.3), 1.0) == DIFFERS
    assert reproduce.verdict(difference(math.nan, math.nan), 1.0) == CANNOT_TELL


def test_another_papers_table(measure: Measure, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Single figures have the spread of the column's baselines; chance level is a divergence."""
    other = tmp_path / "other.csv"
    other.write_text(
        "entry,arch,dataset,seed,best_test_acc\n"
        "gap,resnet56,cifar100,,72.0\n"
        "gem,resnet56,cifar100,1,72.3\ngem,resnet56,cifar100,2,72.5\ngem,resnet56,cifar100,3,72.1\n"
        "softpool,resnet56,cifar100,,1.00\n"
    )
    measured = {(name, "resnet56"): [72.1, 72.4, 71.9] for name in ("gap", "gem", "softpool")}
    run = measure(measured)
    gap, gem, softpool = reproduce.compare(results.load(run.path).trials(), reproduce.load_published(other))
    half = 4.302653 * 0.2 * math.sqrt(1 / 3 + 1)  # t of the two degrees of freedom that gem's three seeds leave
    assert (gap.diff, gap.hi - gap.diff) == pytest.approx((0.1333, half), abs=1e-3)
    assert gem.verdict == AGREES
    assert (softpool.published_diverged, softpool.verdict) == (1, CANNOT_TELL)
    assert main(["reproduce", str(run.path), "--against", str(other)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "1 diverged" in said
    assert "3 cells that are both published and measured: 1 agrees, 2 cannot tell." in said
    assert "reaches no further than 1 point" in said
    assert main(["reproduce", str(run.path), "--against", str(other), "--format", "csv"]) == 0
    assert capsys.readouterr().out.count("\n") == 4


def test_a_table_that_cannot_be_read(tmp_path: Path) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("entry,arch\ngap,resnet56\n")
    with pytest.raises(RequestError, match="no column dataset, best_test_acc"):
        reproduce.load_published(bad)
    bad.write_text("entry,arch,dataset,best_test_acc\ngap,resnet56,cifar100,many\n")
    with pytest.raises(RequestError, match="line 2: best_test_acc is 'many'"):
        reproduce.load_published(bad)
    with pytest.raises(RequestError, match="cannot be read"):
        reproduce.load_published(tmp_path / "none.csv")
    for value, says in (("170", "outside of 0 to 100"), ("0.72", "fractions")):
        bad.write_text(f"entry,arch,dataset,best_test_acc\ngap,resnet56,cifar100,{value}\n")
        with pytest.raises(RequestError, match=says):
            reproduce.load_published(bad)


def test_recipes_and_revisions_are_not_pooled(measure: Measure) -> None:
    trials = results.load(measure(published()).path).trials()
    with pytest.raises(RequestError, match="recipes"):
        reproduce.compare(pd.concat([trials, trials.assign(protocol=99)]), reproduce.load_published())
    with pytest.raises(RequestError, match="several pools or revisions"):
        reproduce.compare(pd.concat([trials, trials.assign(pool_source_sha="x")]), reproduce.load_published())
    with pytest.raises(RequestError, match="above 0"):
        reproduce.compare(trials, reproduce.load_published(), margin=-1)


def test_the_shipped_table_is_whole() -> None:
    frame = reproduce.load_published()
    assert len(frame) == 57
    assert frame.groupby("kind").size().to_dict() == {"agent": 15, "baseline": 27, "vanilla": 15}
    assert np.isclose(frame["best_test_acc"], 1.0).sum() == 5
    assert isinstance(frame, pd.DataFrame)
