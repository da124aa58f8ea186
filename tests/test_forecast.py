"""What a plan costs and can find."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from orchestrator.forecast import forecast
from orchestrator.plan import make_plan
from orchestrator.record import row
from results.store import schema
from results.store.folder import RunFolder
from results.table import published, stats
from search_spaces import space as spaces
from trainer.outcome import Epoch

SPACE = """
name: plan
recipe: {epochs: 10}
architectures: [resnet20, vgg11bn]
datasets: [digits]
pools: [{name: gap, role: baseline}, gem]
seeds: [1, 2, 3]
"""


def test_hours_follow_from_what_was_measured(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(SPACE)
    space, run = spaces.load(tmp_path / "space.yaml"), RunFolder(tmp_path / "run")
    run.create()
    first, *_ = make_plan(space, run).todo
    history = [Epoch(n, 1.0, 50.0, 1.0, 60.0, 0.1, 36.0, 100.0) for n in range(1, 11)]
    run.write_trial(row(first, schema.COMPLETED, history, None))
    said = list(forecast(make_plan(space, run), run))
    assert "5 trials on resnet20-digits: 0.50 h (36.00 s an epoch, measured)" in said
    assert "6 trials on vgg11bn-digits: 0.60 h (36.00 s an epoch, estimated from the other pairs)" in said
    assert "1.10 h in all for one trial after another on such a machine" in said


def test_what_seeds_can_find_follows_from_the_spread_of_each_pair(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(
        "name: plan\npairs:\n- {arch: resnet56, dataset: cifar100}\n- {arch: vgg16bn, dataset: cifar100}\n"
        "- {arch: mobilenetv2, dataset: fmnist}\n- {arch: resnet20, dataset: digits}\n"
        "pools: [{name: gap, role: baseline}, gem]\nseeds: [1, 2, 3]\n"
    )

    def said(*overrides: str) -> list[str]:
        run = RunFolder(tmp_path / "run")
        run.create()
        return list(forecast(make_plan(spaces.load(tmp_path / "space.yaml", overrides), run), run))[1:]

    spreads = published.spreads()
    pairs = [("resnet56", "cifar100"), ("vgg16bn", "cifar100"), ("mobilenetv2", "fmnist")]
    for pair, line in zip(pairs, said()[:3], strict=True):
        found = re.fullmatch(
            r"(\S+): 3 seeds find a difference of ([\d.]+) points, (\d+) would find 0.5 "
            r"\(([\d.]+) between published runs of one function, by (\d+) runs\)",
            line,
        )
        assert found is not None, line
        assert found[1] == "-".join(pair)
        assert stats.power(float(found[2]), spreads[pair].std * 2**0.5, 3) == pytest.approx(0.8, abs=0.01)
        seeds = int(found[3])
        enough, fewer = (stats.power(0.5, spreads[pair].std * 2**0.5, n) for n in (seeds, seeds - 1))
        assert fewer < 0.8 <= enough
        assert float(found[4]) == pytest.approx(spreads[pair].std, abs=0.005)
    times = float(said()[3].removeprefix("resnet20-digits: 3 seeds find a difference of ").split()[0])
    assert stats.power(times, 2**0.5, 3) == pytest.approx(0.8, abs=0.01)
    assert "none is published" in said()[3]
    assert said("seeds=[1]")[0].startswith("resnet56-cifar100: one seed finds nothing, ")
    assert said("seeds=[1]")[3] == "resnet20-digits: one seed finds nothing"
