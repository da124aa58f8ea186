"""Candidates that change their whole process, in one sweep with built-in pools: those come to what they do alone.

Built-in pools and adversaries take turns in a space, so that each adversary has one before it and one behind it, in
the same seed, and itself once more after both. All must leave the same rows to the bit, of trials and of epochs, and be
told the same by the gate.
"""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from orchestrator import cli
from orchestrator import sweep as sweeps
from results.store import schema
from search_spaces import pool
from search_spaces.grid import BASELINE, Entry, Grid, Pair
from search_spaces.pool import Pool
from search_spaces.recipe import Recipe
from tests.adversaries import ADVERSARIES, NOBODY
from trainer.gate import Gate
from trainer.gate.report import Validation

ROOT = Path(__file__).parents[1]
RECIPE = Recipe(batch_size=32)  # the size that some of them wait for
SPACE = """
name: company
recipe: {epochs: 2, batch_size: 32, lr: 0.02, train_samples: 64, test_samples: 40}
pairs: [{arch: resnet20, dataset: digits}]
seeds: [1, 2]
max_failures: 1
checkpoint_every: 1
stall_timeout: 60
skip_invalid: true
pools:
"""
BARE = ["gap", "gem", "avg_max", *(f"avg_max(weight={percent / 100})" for percent in range(1, 12))]
WITH_LAYERS = [f"cbam(ratio={ratio})" for ratio in range(1, 14)]  # convolutions, products, a batch norm
# Each has both kinds beside it.
BUILT_IN = [spec for both in itertools.zip_longest(BARE, WITH_LAYERS) for spec in both if spec]
WHEN_AND_WHERE = [
    *("epoch_s", "train_s", "images_per_s", "pool_times_gap", "peak_memory_mb"),
    *("started_at", "finished_at", "host", "git_commit"),
]

QUICK = ("default_dtype", "sgd", "weights", "thread")  # at four moments
REST = tuple(name for name in ADVERSARIES if name not in QUICK)
SWEEPS = [QUICK, *(REST[start : start + 6] for start in range(0, len(REST), 6))]

# What the gate says of an adversary: what it changed, or what came of that in training.
SAID = {"process-state", "training", "run"}
UNSEEN = {"rows", "surroundings", "signals", "thread"}  # what no number depends on, or not in every run

pytestmark = pytest.mark.soak


def around(name: str, batch: Sequence[str]) -> list[Pool]:
    """The built-in pools before and behind an adversary."""
    index = batch.index(name)
    return [one for spec in BUILT_IN[index : index + 2] for one in pool.expand(spec)]


def in_turn(batch: Sequence[str], folder: Path) -> list[str]:
    """Built-in pools and adversaries, as a space names them; and the files of these."""
    for name in batch:
        (folder / f"{name}.py").write_text(ADVERSARIES[name])
    specs = itertools.zip_longest(BUILT_IN[: len(batch) + 1], (f"{name}.py" for name in batch))
    return [spec for both in specs for spec in both if spec]


@pytest.fixture(scope="module")
def sweep(ray_address: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Sequence[str]], Path]:
    """Runs one with those adversaries, or without any, into a folder of its own; once."""
    ran: dict[Sequence[str], Path] = {}

    def run(batch: Sequence[str]) -> Path:
        if batch not in ran:
            folder = tmp_path_factory.mktemp("sweep")
            specs = in_turn(batch, folder) if batch else BUILT_IN[:7]
            files = [f"  - {{file: {spec}}}" if spec.endswith(".py") else f"  - {spec}" for spec in specs]
            (folder / "space.yaml").write_text(SPACE + "\n".join(files))
            ran[batch] = folder / "run"
            where = ["--space", str(folder / "space.yaml"), "--out", str(ran[batch]), "--address", ray_address]
            with pytest.MonkeyPatch.context() as patch:  # the gate refuses most of them, which is another test's
                patch.setattr(sweeps.Sweep, "_refuse_invalid", lambda self, report: list(self.plan.todo))
                assert cli.main(where) in (cli.OK, cli.INCOMPLETE)
        return ran[batch]

    return run


def rows(run: Path, table: str, pools: Sequence[Pool]) -> pd.DataFrame:
    """Those of trials of these pools, but for what times and places they had."""
    frame = pd.read_parquet(run / table).drop(columns=WHEN_AND_WHERE, errors="ignore")
    trials = pd.read_parquet(run / "trials", columns=["trial_id", "pool"])
    of = trials["trial_id"][trials["pool"].isin([one.label for one in pools])]
    order = ["trial_id", "epoch"] if "epoch" in frame else ["trial_id"]
    return frame[frame["trial_id"].isin(of)].sort_values(order).reset_index(drop=True)


@pytest.mark.parametrize("name", ADVERSARIES)
def test_nobody_in_a_sweep_notices(name: str, sweep: Callable[[Sequence[str]], Path]) -> None:
    batch = next(each for each in SWEEPS if name in each)
    run, undisturbed, pools = sweep(batch), sweep(()), around(name, batch)
    for table, count in (("trials", 2), ("epochs", 4)):
        found, wanted = (rows(each, table, pools) for each in (run, undisturbed))
        assert len(wanted) == count * len(pools)
        # Not of types: a trial that failed has no best epoch, and so the column's are no integers.
        pd.testing.assert_frame_equal(found, wanted, check_exact=True, check_dtype=False)
    trials = pd.read_parquet(run / "trials")
    own = trials[trials["pool"] == name]["status"]
    assert len(own) == 2
    assert schema.INVALID not in set(own), "it was not tried"


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Sequence[str]], list[Validation]]:
    """What one says of those adversaries and the built-in pools, in turn; of all of these, if of none; once."""
    said: dict[Sequence[str], list[Validation]] = {}

    def examine(batch: Sequence[str]) -> list[Validation]:
        if batch not in said:
            folder = tmp_path_factory.mktemp("gate")
            specs = in_turn(batch, folder) if batch else BUILT_IN
            entries = tuple(Entry(one, BASELINE) for spec in specs for one in pool.expand(spec, root=folder))
            with Gate.over(Grid("company", entries, (Pair("resnet20", "digits"),), (1,), RECIPE)) as opened:
                said[batch] = list(opened.report.validations)
        return said[batch]

    return examine


def but_for_times(one: Validation) -> dict[str, Any]:
    found = dataclasses.replace(one, cost=one.cost and dataclasses.replace(one.cost, time_ms=0.0, times_gap=0.0))
    return found.found_dict()


@pytest.mark.parametrize("name", ADVERSARIES)
def test_the_gate_says_the_same_of_others(name: str, gate: Callable[[Sequence[str]], list[Validation]]) -> None:
    batch = QUICK if name in QUICK else REST
    beside, alone = ({one.pool: one for one in gate(each)} for each in (batch, ()))
    for each in around(name, batch):
        assert alone[each].verdict == "ok"
        assert but_for_times(beside[each]) == but_for_times(alone[each])
    (own,) = (one for one in beside.values() if one.pool.name == name)
    says = {finding.check for finding in own.findings}
    assert name in UNSEEN or says & SAID, own.findings


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Sequence[str]], Path]:
    """Where a process of each of those has left its trial; once."""
    left: dict[Sequence[str], Path] = {}

    def run(batch: Sequence[str]) -> Path:
        if batch not in left:
            left[batch] = tmp_path_factory.mktemp("together")
            command = [sys.executable, "-m", "tests.adversaries", str(left[batch]), NOBODY, *batch]
            subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
        return left[batch]

    return run


@pytest.mark.parametrize("name", ADVERSARIES)
def test_in_one_process_it_does_harm(name: str, together: Callable[[Sequence[str]], Path]) -> None:
    """Without which the others would say nothing: a valid pool, and the next trial is another or none."""
    runs = together(QUICK if name in QUICK else REST)
    assert (runs / f"{name}.acted").exists(), "it is no valid pool"
    gap = list(pool.expand("gap"))
    wanted = [rows(runs / NOBODY, table, gap) for table in ("trials", "epochs")]
    assert list(map(len, wanted)) == [1, 2]
    if list((runs / name).glob("trials/*")):
        found = [rows(runs / name, table, gap) for table in ("trials", "epochs")]
        assert not all(map(pd.DataFrame.equals, found, wanted))
