"""The table and its views."""

from __future__ import annotations

from io import StringIO

import pandas as pd
import pytest

from results.table import leaderboard, render, stats
from results.table.trials import Selection
from search_spaces.equivalence import Equivalence
from search_spaces.errors import RequestError

PAIRS = [("resnet56", "cifar100"), ("vgg16bn", "cifar100")]
VALUES = {
    ("gap", "baseline"): [[72.0, 72.4, 71.8, 72.3, 72.2], [73.0, 73.1, 72.9, 73.3, 73.2]],
    ("gem", "baseline"): [[71.0, 71.6, 70.8, 71.2, 71.1], [73.1, 73.0, 73.2, 73.1, 73.3]],
    ("mine_50%", "candidate"): [[74.1, 74.3, 73.9, 74.5, 74.2], [73.0, 73.1, 72.9, 73.3, 73.1]],
    ("odd|<b>", "candidate"): [[60.0, 71.8, 71.9, 72.1, 72.0], [73.0, 73.2]],
}


def trials() -> pd.DataFrame:
    rows = [
        {
            "trial_id": f"{pool}-{arch}-{dataset}-s{seed}-x",
            **{"pool": pool, "role": role, "arch": arch, "dataset": dataset, "seed": seed, "hidden": False},
            **{"pool_name": pool, "pool_params": "{}", "pool_revision": None, "recipe": "{}", "protocol": 1},
            **{"best_test_acc": value, "final_test_acc": value, "status": "completed"},
        }
        for (pool, role), columns in VALUES.items()
        for (arch, dataset), found in zip(PAIRS, columns, strict=True)
        for seed, value in enumerate(found)
    ]
    return pd.DataFrame(rows).astype({"pool_revision": "string"})


def frame(**selection: object) -> pd.DataFrame:
    same = [Equivalence("vgg16bn", ("gap", "gem", "mine_50%"), {})]
    return leaderboard.cells(trials(), selection=Selection(**selection), same=same)  # type: ignore[arg-type]


def test_marks_and_flags() -> None:
    found = frame()
    best = found.query("pool == 'mine_50%' and arch == 'resnet56'").set_index("baseline")
    assert best["better"].all()
    assert (best["p_holm"] < 0.05).all()
    assert (best["p_holm"] >= best["p"]).all()
    assert found.query("role == 'baseline'")["p_holm"].isna().all(), "baselines are no family of candidates"
    assert found.query("arch == 'resnet56'").drop_duplicates("pool").set_index("pool")["rank"].to_dict() == {
        "gap": 2,
        "gem": 3,
        "mine_50%": 1,
        "odd|<b>": 1,
    }, "an interval as wide as that of 60.0 and its siblings is below nobody's"
    odd = found.query("pool == 'odd|<b>' and arch == 'resnet56'").iloc[0]
    assert odd["flags"] == "seed 0: 60.00"
    alike = found.query("pool == 'mine_50%' and arch == 'vgg16bn'")
    assert alike["alike"].all()
    assert set(alike["same_as"]) == {"gap, gem"}
    text = render.to_text(render.Wide(found))
    assert f"+2.06 [+1.92, +2.20] {render.BETTER}" in text
    assert render.ALIKE in text
    assert "none here" not in text


def test_the_family_is_what_is_compared() -> None:
    everything, one = frame(), frame(baselines=["gap"])
    assert len(one) < len(everything)
    mine = "pool == 'mine_50%' and arch == 'resnet56' and baseline == 'gap'"
    assert one.query(mine)["p_holm"].item() < everything.query(mine)["p_holm"].item()
    family = one[one["role"] == "candidate"]
    assert stats.holm(family["p"].to_numpy()) == pytest.approx(family["p_holm"].to_numpy(), nan_ok=True)


def test_what_is_chosen_is_shown_and_what_is_not_there_is_named() -> None:
    assert set(frame(pools=["gem", "mine_50%"])["pool"]) == {"gem", "mine_50%"}
    assert set(frame(pairs=["vgg16bn-cifar100"])["arch"]) == {"vgg16bn"}
    assert frame(seeds=[0, 1]).query("pool == 'gap'")["n"].eq(2).all()
    with pytest.raises(RequestError) as caught:
        frame(pools=["gme"], baselines=["mine_50%"], pairs=["vgg-cifar"], seeds=[99])
    assert [problem.where for problem in caught.value.problems] == ["--pools", "--baseline", "--pairs", "--seeds"]
    assert "did you mean 'gem'" in caught.value.problems[0].what


def test_pools_without_a_seed_in_common_are_compared_unpaired() -> None:
    shifted = trials()
    shifted.loc[shifted["pool"] == "mine_50%", "seed"] += 100
    found = leaderboard.cells(shifted)
    row = found.query("pool == 'mine_50%' and arch == 'resnet56' and baseline == 'gap'").iloc[0]
    assert not row["paired"]
    assert row["n_pairs"] == 0
    assert row["diff_lo"] > 0
    assert "by Welch's test: mine_50% on resnet56-cifar100" in " ".join(render.to_text(render.Wide(found)).split())


def test_sorts() -> None:
    assert [row.name for row in render.Wide(frame()).rows] == ["gap", "gem", "mine_50%", "odd|<b>"]
    assert [row.name for row in render.Wide(frame(), sort="name").rows] == ["gap", "gem", "mine_50%", "odd|<b>"]
    better = trials().replace({"best_test_acc": {72.1: 90.0, 72.0: 90.0, 71.9: 90.0, 71.8: 90.0}})
    found = leaderboard.cells(better[better["pool"] != "gap"])
    assert [row.name for row in render.Wide(found, sort="mean").rows] == ["gem", "odd|<b>", "mine_50%"]


def test_csv_reads_back_every_digit() -> None:
    found = frame()
    text = StringIO(render.to_csv(render.Wide(found)))
    again = pd.read_csv(text, float_precision="round_trip").astype(leaderboard.COLUMNS)
    pd.testing.assert_frame_equal(again, found, check_exact=True)


def test_latex_has_a_cell_for_each_column_and_rules_between_the_roles() -> None:
    """`test_hostile` compiles it."""
    table = render.to_latex(render.Wide(frame(), notes=["50 % of this & that_"], every=True))
    assert r"mine\_50\% &" in table
    lines = [line for line in table.splitlines() if line.endswith(r"\\")]
    assert {line.count(" & ") for line in lines} == {len(PAIRS)}
    assert table.count(r"\midrule") == 2


def test_a_cell_in_which_all_diverged_is_counted_and_compared_with_nothing() -> None:
    lost = trials()
    mine = (lost["pool"] == "mine_50%") & (lost["arch"] == "resnet56")
    lost.loc[mine, "status"] = "diverged"
    found = leaderboard.cells(lost)
    row = found.query("pool == 'mine_50%' and arch == 'resnet56' and baseline == 'gap'").iloc[0]
    assert (row["n"], row["diverged"], row["n_pairs"], row["better"]) == (0, 5, 0, False)
    assert row[["mean", "diff", "p", "p_holm", "detectable", "rank"]].isna().all()
    text = " ".join(render.to_text(render.Wide(found)).split())
    assert "5 diverged" in text
    assert "Diverged, not in any mean: mine_50% on resnet56-cifar100 (5)." in text
    everything = lost.assign(status="diverged")
    assert "diverged" in render.to_text(render.Wide(leaderboard.cells(everything)))
    assert leaderboard.cells(everything)["rank"].isna().all()
