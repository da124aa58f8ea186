"""The run folder and the table made from it."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats as scipy_stats

import results
from orchestrator.record import row
from results.__main__ import main
from results.store import parquet, schema, verify
from results.store.disk import Disk
from results.store.folder import RunFolder
from results.table import leaderboard, render
from search_spaces import pool
from search_spaces.errors import RequestError
from search_spaces.grid import Entry, Grid, Pair
from search_spaces.recipe import Recipe

PAIRS = (Pair("resnet20", "digits"), Pair("vgg11bn", "digits", hidden=True))
ENTRIES = (
    Entry(pool.expand("gap")[0], "baseline"),
    Entry(pool.expand("global_max")[0], "baseline"),
    Entry(pool.expand("gem")[0]),
)
GRID = Grid("g", ENTRIES, PAIRS, (1, 2, 3), Recipe(epochs=2))
ACCURACY = {"gap": [70.0, 71.0, 72.5], "global_max": [60.0, 61.0, 62.0], "gem": [71.0, 71.5, 74.0]}

Fill = Callable[..., RunFolder]


def row_of(frame: pd.DataFrame, pool_label: str, baseline: str, arch: str = "resnet20") -> Any:
    (row,) = frame.query("pool == @pool_label and baseline == @baseline and arch == @arch").to_dict("records")
    return row


def in_order(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.sort_values([key for key in ("trial_id", "epoch") if key in frame], ignore_index=True)


@pytest.fixture
def fill(tmp_path: Path) -> Fill:
    """A run folder with the visible pair of GRID measured as ACCURACY, but for {(pool, seed): status}."""

    def make(other: dict[tuple[str, int], str | None] | None = None, grid: Grid = GRID) -> RunFolder:
        run = RunFolder(tmp_path / "run")
        run.create()
        run.write_grid(grid)
        for planned in grid:
            key = (planned.trial.pool.name, planned.trial.seed)
            status = None if planned.hidden else (other or {}).get(key, schema.COMPLETED)
            if status is None:
                continue
            written = row(planned, status, (), None)
            if status == schema.COMPLETED:
                value = ACCURACY[key[0]][key[1] - 1]
                written |= {"best_test_acc": value, "final_test_acc": value - 1}
            run.write_trial(written)
        return run

    return make


def test_files_have_the_declared_schema_even_where_all_is_null(fill: Fill) -> None:
    run = fill({("gap", 1): schema.FAILED})
    for path in (run.path / "trials").iterdir():
        assert pq.read_schema(path).equals(schema.TRIALS)
    frame = pd.read_parquet(run.path / "trials")
    assert list(frame.columns) == schema.TRIALS.names
    assert len(frame) == 9


def test_epochs_are_rewritten_whole_and_half_written_files_are_not_seen(fill: Fill) -> None:
    run = fill()
    row = dict.fromkeys(schema.EPOCHS.names, 1) | {"trial_id": "t", "pool": "gap", "arch": "a", "dataset": "d"}
    row |= {"git_commit": "c0ffee", "kernels": None}
    run.epochs.write("t", [row])
    run.epochs.write("t", [row, row | {"epoch": 2}])
    (run.path / "epochs" / ".tmp-u.parquet").write_bytes(b"half a file")
    assert pd.read_parquet(run.path / "epochs")["epoch"].tolist() == [1, 2]
    assert results.load(run.path).epochs()["epoch"].tolist() == [1, 2]
    assert pq.read_schema(run.path / "epochs" / "t.parquet").equals(schema.EPOCHS)


def test_a_column_that_is_not_declared_is_refused(fill: Fill) -> None:
    with pytest.raises(ValueError, match="no such column in trials: accuracy"):
        fill().write_trial({"trial_id": "t", "accuracy": 1.0})


def test_a_failed_write_leaves_the_old_file(fill: Fill, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fill()
    run.files.write("checkpoints/t.pt", b"old")

    def full_disk(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        run.files.write("checkpoints/t.pt", b"new")
    assert run.files.read("checkpoints/t.pt") == b"old"
    assert [path.name for path in (run.path / "checkpoints").iterdir()] == ["t.pt"]


def test_an_unwritable_run_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="cannot be written"):
        RunFolder(tmp_path / "file" / "run").create()


def test_the_tidy_frame(fill: Fill) -> None:
    frame = results.load(fill().path).leaderboard()
    assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == leaderboard.COLUMNS
    assert (frame["arch"] == "resnet20").sum() == 4, "gem to both baselines, and each baseline to the other"
    row = row_of(frame, "gem", "gap")
    ours, theirs = np.array(ACCURACY["gem"]), np.array(ACCURACY["gap"])
    test = scipy_stats.ttest_rel(ours, theirs)
    interval = test.confidence_interval(0.95)
    assert (row["n"], row["n_pairs"], row["completed"], row["missing"]) == (3, 3, 3, 0)
    assert row["mean"] == pytest.approx(ours.mean())
    assert row["std"] == pytest.approx(ours.std(ddof=1))
    assert row["diff"] == pytest.approx((ours - theirs).mean())
    assert (row["diff_lo"], row["diff_hi"]) == pytest.approx((interval.low, interval.high))
    assert row["p"] == pytest.approx(test.pvalue)
    hidden = frame[frame["arch"] == "vgg11bn"]
    assert hidden["hidden"].all()
    assert (hidden["missing"] == 3).all()
    final = results.load(fill().path).leaderboard("final_test_acc")
    assert row_of(final, "gem", "gap")["mean"] == pytest.approx(row["mean"] - 1)


def test_gaps_are_counted_and_differences_are_of_the_seeds_that_both_have(fill: Fill) -> None:
    run = fill({("gem", 1): schema.DIVERGED, ("gap", 2): schema.FAILED, ("global_max", 3): None})
    frame = results.load(run.path).leaderboard()
    row = row_of(frame, "gem", "gap")
    assert (row["n"], row["completed"], row["diverged"], row["n_pairs"]) == (2, 2, 1, 1)
    assert row["diff"] == pytest.approx(1.5)
    assert math.isnan(row["diff_lo"])
    assert row_of(frame, "gap", "global_max")["failed"] == 1
    assert row_of(frame, "global_max", "gap")["missing"] == 1
    text = render.to_text(render.Wide(results.load(run.path).leaderboard()))
    for said in (
        "Diverged, not in any mean: gem on resnet20-digits (1).",
        "Failed, not in any mean: gap on resnet20-digits (1).",
        "Missing, not in any mean: global_max on resnet20-digits (1).",
        "Withheld until the final run (--final): vgg11bn-digits.",
    ):
        assert said in " ".join(text.split())


def test_labels_and_roles_of_the_newest_space_win_however_old_the_trials(fill: Fill) -> None:
    run = fill()
    relabelled = Entry(pool.expand("gem", label="ours")[0], "baseline")
    run.write_grid(Grid("g", (*ENTRIES[:2], relabelled), PAIRS[:1], (1, 2), GRID.recipe))
    frame = results.load(run.path).leaderboard()
    assert set(frame["pool"]) == {"gap", "global_max", "ours"}
    assert (frame["role"] == "baseline").all()
    assert set(frame[frame["pool"] == "ours"]["n"]) == {3}
    assert (frame["pool"] != frame["baseline"]).all()


def test_trials_beyond_the_newest_space_stay_in_the_table(fill: Fill) -> None:
    run = fill()
    run.write_grid(Grid("g", ENTRIES[:2], PAIRS[:1], (1, 2, 3), GRID.recipe))
    assert "gem" in set(results.load(run.path).leaderboard()["pool"])


def test_a_label_that_has_meant_two_pools_is_two_rows(fill: Fill) -> None:
    run = fill()
    for p in (1, 5):
        ours = Entry(pool.expand("gem", {"p": p}, label="ours")[0])
        grid = Grid("g", (*ENTRIES[:2], ours), PAIRS[:1], (1, 2, 3), GRID.recipe)
        run.write_grid(grid)
        for planned in grid:
            if planned.trial.pool.label == "ours":
                run.write_trial(row(planned, schema.COMPLETED, (), None) | {"best_test_acc": 50.0 + p})
    frame = results.load(run.path).leaderboard()
    means = frame[frame["pool"].str.startswith("ours")].drop_duplicates("pool").set_index("pool")["mean"]
    assert sorted(means) == [51.0, 55.0]
    assert all('"p": ' in label for label in means.index)


def with_a_bit_turned(data: bytes) -> bytes:
    return data[:20] + bytes([data[20] ^ 1]) + data[21:]  # in a page, whose checksum tells


@pytest.mark.parametrize("spoil", [with_a_bit_turned, lambda _: b"junk"])
def test_a_damaged_file_is_named_with_what_to_do(
    fill: Fill, capsys: pytest.CaptureFixture[str], spoil: Callable[[bytes], bytes]
) -> None:
    run = fill()
    file = sorted((run.path / "trials").iterdir())[3]
    file.write_bytes(spoil(file.read_bytes()))
    assert main(["status", str(run.path)]) == 2
    said = capsys.readouterr().err
    assert file.name in said
    assert f"`python -m results verify {run.path} --set-aside` lists what is wrong there, and moves it away" in said
    assert main(["verify", str(run.path), "--set-aside"]) == 1
    assert main(["status", str(run.path)]) == 0


def test_a_candidate_is_no_baseline_and_is_said_to_be_there(fill: Fill) -> None:
    with pytest.raises(RequestError, match=r"--baseline: expected a baseline, got the candidate 'gem'; .*gap"):
        results.load(fill().path).leaderboard(baselines=["gem"])


def test_revisions_of_a_file_are_rows_of_their_own(fill: Fill, tmp_path: Path) -> None:
    run = fill()
    path = tmp_path / "mine.py"
    for value in (1, 2):
        path.write_text(f"class CustomPool:\n    x = {value}")
        grid = Grid("g", (*ENTRIES[:2], Entry(pool.expand(str(path))[0])), PAIRS[:1], (1,), GRID.recipe)
        run.write_grid(grid)
        for planned in grid:
            if planned.trial.pool.name == "mine":
                run.write_trial(
                    row(planned, schema.COMPLETED, (), None) | {"best_test_acc": 50.0, "final_test_acc": 50.0}
                )
    frame = results.load(run.path).leaderboard()
    assert frame[frame["pool"] == "mine"]["revision"].nunique() == 2
    assert render.to_markdown(render.Wide(frame)).count("| mine @") == 2


def test_recipes_are_not_mixed(fill: Fill) -> None:
    run = fill()
    other = Grid("g", ENTRIES, PAIRS, (1,), Recipe(epochs=3))
    run.write_trial(row(next(iter(other)), schema.COMPLETED, (), None) | {"best_test_acc": 10.0})
    with pytest.raises(RequestError, match=r"2 recipes \(epochs=2; epochs=3\)|2 recipes \(epochs=3; epochs=2\)"):
        results.load(run.path).leaderboard()
    frame = results.load(run.path).leaderboard(allow_mixed=True)
    means = frame[frame["arch"] == "resnet20"].drop_duplicates("pool").set_index("pool")["mean"]
    assert means["gap [epochs=3]"] == 10, "side by side, never in one mean"
    assert means["gap [epochs=2]"] == pytest.approx(71.17, abs=0.01)
    assert frame[frame["pool"] == "gap [epochs=3]"]["baseline"].isna().all(), "nor compared"


def test_views(fill: Fill, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(fill().path)
    assert main(["leaderboard", run]) == 0
    text = capsys.readouterr().out
    assert "72.17 ± 1.61 (3)" in text
    assert "+1.00 [-0.24, +2.24]" in text
    order = [text.index(name) for name in ("\n  gap", "\n  global_max", "\n  gem")]
    assert order == sorted(order), "baselines first, the best on top"
    assert main(["leaderboard", run, "--format", "markdown"]) == 0
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert len(table) == 2 + 3
    target = tmp_path / "table.csv"
    assert main(["leaderboard", run, "--format", "csv", "--output", str(target)]) == 0
    again = pd.read_csv(target, float_precision="round_trip").astype(leaderboard.COLUMNS)
    pd.testing.assert_frame_equal(again, results.load(run).leaderboard(), check_exact=True)


def test_what_is_no_run_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["leaderboard", str(tmp_path / "nothing")]) == 2
    assert "is no run folder" in capsys.readouterr().err


def test_an_empty_run_folder_has_an_empty_table(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.create()
    frame = results.load(run.path).leaderboard()
    assert frame.empty
    assert render.to_text(render.Wide(frame))


def test_asking_results_never_imports_torch() -> None:
    code = "import sys, results, results.__main__, search_spaces.space; assert 'torch' not in sys.modules, 'torch'"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


# Merging small files


def test_compacting_changes_nothing_that_is_asked(fill: Fill) -> None:
    run = fill({("gem", 2): schema.FAILED, ("gap", 3): schema.DIVERGED})
    before = results.load(run.path)
    trials, table, ended = before.trials(), before.leaderboard(), run.ended()
    assert run.compact() == len(trials) - 1
    files = [file.name for file in (run.path / "trials").iterdir()]
    assert len(files) == 2, "one merged, and the failed one, which may run again"
    after = results.load(run.path)
    pd.testing.assert_frame_equal(in_order(after.trials()), in_order(trials))
    pd.testing.assert_frame_equal(after.leaderboard(), table)
    assert run.ended() == ended
    assert all(run.status(trial_id) == one.status for trial_id, one in ended.items())
    assert run.status("nobody") is None
    assert len(pd.read_parquet(run.path / "trials")) == len(trials)
    assert run.compact() == 0


def test_epochs_are_merged_with_their_trial(fill: Fill) -> None:
    run = fill()
    ids = sorted(run.ended())
    for trial_id in [*ids, "running"]:
        run.epochs.write(trial_id, [{"trial_id": trial_id, "epoch": epoch, "test_acc": 1.0} for epoch in (1, 2)])
    before = in_order(results.load(run.path).epochs())
    run.compact()
    left = [file.name for file in (run.path / "epochs").iterdir() if "merged" not in file.name]
    assert left == ["running.parquet"]
    pd.testing.assert_frame_equal(in_order(results.load(run.path).epochs()), before)


def test_a_merge_that_was_killed_leaves_no_row_twice(fill: Fill) -> None:
    run = fill()
    small = {file: file.read_bytes() for file in (run.path / "trials").iterdir()}
    expected = sorted(run.ended())
    run.compact()
    for file, data in small.items():  # as before the small ones were taken away
        file.write_bytes(data)
    assert sorted(results.load(run.path).trials()["trial_id"]) == expected
    run.compact()
    assert sorted(pd.read_parquet(run.path / "trials")["trial_id"]) == expected


def test_a_reader_that_listed_the_files_before_a_merge_reads_on(fill: Fill, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fill()
    expected = sorted(run.ended())
    names = Disk.names
    compacted = []

    def listed(self: Disk, folder: str) -> list[str]:
        found = names(self, folder)
        if not compacted:
            compacted.append(True)
            run.compact()
        return found

    monkeypatch.setattr(Disk, "names", listed)
    assert sorted(results.load(run.path).trials()["trial_id"]) == expected


def test_what_is_imported_when() -> None:
    code = "import sys, results, orchestrator.record; assert not {'pandas', 'scipy'} & {*sys.modules}; import "
    code += "results.__main__, search_spaces.space; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
    assert {"load", "Run"} <= set(dir(results)), "completed in a notebook"
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        results.laod  # noqa: B018  # pyright: ignore


def without(run: RunFolder, *columns: str) -> None:
    """Rewrites `trials` as an older version left it."""
    for file in (run.path / "trials").iterdir():
        old = pq.read_table(file).drop_columns(list(columns))
        at = old.column_names.index("schema_version")
        file.write_bytes(parquet.written(old.set_column(at, "schema_version", pa.array([1] * len(old), pa.int64()))))


def test_a_row_of_an_older_version_has_nulls(fill: Fill) -> None:
    run = fill()
    without(run, "compiled")
    trials = results.load(run.path).trials()
    assert list(trials.columns) == schema.TRIALS.names
    assert trials["compiled"].isna().all()


@pytest.mark.parametrize("compacted", [False, True])
def test_rows_of_schema_1_have_the_name_and_revision_of_their_pools(
    fill: Fill, tmp_path: Path, compacted: bool
) -> None:
    (tmp_path / "Mine.py").write_text("class CustomPool:\n    pass")
    mine = Entry(pool.expand(str(tmp_path / "Mine.py"))[0])
    run = fill(
        grid=Grid("g", (*ENTRIES, mine), PAIRS, (1, 2, 3), GRID.recipe),
        other={("Mine", n): "failed" for n in (1, 2, 3)},
    )
    if compacted:
        run.compact()
    before = results.load(run.path).trials()
    revision = mine.pool.revision
    expected = {("gap", ""), ("global_max", ""), ("gem", ""), ("mine", revision)}
    assert set(zip(before["pool_name"], before["pool_revision"].fillna(""), strict=True)) == expected
    table = results.load(run.path).leaderboard()
    without(run, "pool_name", "pool_revision")
    after = results.load(run.path).trials()
    pd.testing.assert_frame_equal(after.drop(columns="schema_version"), before.drop(columns="schema_version"))
    pd.testing.assert_frame_equal(results.load(run.path).leaderboard(), table)
    assert set(results.load(run.path).trials(["pool_revision"], pool_name="mine")["pool_revision"]) == {revision}
    assert len(results.load(run.path).trials(["seed"], pool_name=["gem", "gap"])) == 6
    assert not verify.unreadable(run)
