"""Asking one run folder or several: filters, the table over all of them, a notebook's cell, the README's examples."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

import results
from orchestrator.record import epoch_rows, row
from results import __main__
from results.store import schema
from results.store.folder import RunFolder
from results.table import render
from results.table.trials import Selection
from search_spaces import pool
from search_spaces.errors import RequestError
from search_spaces.grid import Entry, Grid, Pair
from search_spaces.recipe import Recipe
from trainer.outcome import Epoch

README = Path(__file__).parents[1] / "README.md"
RECIPE = Recipe(epochs=3)
GAP, GEM = Entry(pool.expand("gap")[0], "baseline"), Entry(pool.expand("gem", label="ours <p>")[0])
RESNET, VGG = Pair("resnet56", "cifar100"), Pair("vgg16bn", "cifar100")

Fill = Callable[..., str]


@pytest.fixture
def fill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fill:
    """`fill("a", accuracy=70.0)`: a run folder, complete, of which the working directory's `runs` has any number."""
    monkeypatch.chdir(tmp_path)

    def make(
        name: str,
        entries: Sequence[Entry] = (GAP, GEM),
        pairs: Sequence[Pair] = (RESNET, VGG),
        seeds: Sequence[int] = (1, 2, 42),
        recipe: Recipe = RECIPE,
        accuracy: float = 70.0,
    ) -> str:
        run = RunFolder(Path("runs") / name)
        run.create()
        grid = Grid(name, tuple(entries), tuple(pairs), tuple(seeds), recipe)
        run.write_grid(grid)
        for planned in grid:
            best = accuracy + planned.trial.seed / 100
            history = [Epoch(e, 1.0 / e, 50.0, 2.0 / e, best - 3 + e, 0.1, 2.0, 100.0) for e in (1, 2, 3)]
            run.epochs.write(planned.trial.id, epoch_rows(planned.trial, history))
            run.write_trial(row(planned, schema.COMPLETED, history, None))
        return f"runs/{name}"

    return make


def in_order(frame: pd.DataFrame) -> pd.DataFrame:
    keys = [key for key in ("run", "trial_id", "epoch") if key in frame]
    return frame.sort_values(keys, ignore_index=True)


FILTERS: Sequence[Mapping[str, Any]] = [
    {"arch": "resnet56"},
    {"seed": 42},
    {"seed": [4, 2]},
    {"arch": ["resnet56", "vgg16bn"], "seed": (1, 42)},
    {"pool": "ours <p>", "dataset": "cifar100"},
    {"dataset": "fmnist"},
    {"seed": []},
]


@pytest.mark.parametrize("compacted", [False, True])
@pytest.mark.parametrize("where", FILTERS)
def test_a_filter_keeps_what_pandas_keeps(fill: Fill, where: Mapping[str, Any], compacted: bool) -> None:
    run = results.load(fill("a"))
    if compacted:
        run.folder.compact()
        extra = fill("a", seeds=[42, 7])  # some of them stand in both kinds of files now
        assert extra == "runs/a"
    for read, name in ((run.trials, "best_test_acc"), (run.epochs, "test_acc")):
        expected = read()
        assert not expected.duplicated([key for key in ("trial_id", "epoch") if key in expected]).any()
        for column, values in where.items():
            expected = expected[expected[column].isin(values if isinstance(values, list | tuple) else [values])]
        pd.testing.assert_frame_equal(in_order(read(**where)), in_order(expected), check_dtype=bool(len(expected)))
        assert sorted(read([name], **where)[name]) == sorted(expected[name])
        assert list(read([name], **where).columns) == [name]


def test_nulls_are_found_and_other_columns_filter_too(fill: Fill) -> None:
    run = results.load(fill("a"))
    assert len(run.trials(pool_source_sha=None)) == 12
    assert run.trials(pool_source_sha="x").empty
    assert set(run.epochs(epoch=[1, 3])["epoch"]) == {1, 3}
    some = run.trials()["trial_id"][0]
    assert run.epochs(["epoch"], trial_id=some)["epoch"].tolist() == [1, 2, 3]


def test_files_that_cannot_match_are_not_opened(fill: Fill) -> None:
    run = results.load(fill("a"))
    for file in (run.folder.path / "epochs").glob("*-vgg16bn-*"):
        file.write_bytes(b"junk")
    assert len(run.epochs(arch="resnet56")) == 18
    with pytest.raises(RequestError, match="vgg16bn"):
        run.epochs(seed=1)


def test_files_of_other_names_are_opened(fill: Fill) -> None:
    run = results.load(fill("a"))
    for at, file in enumerate(sorted((run.folder.path / "trials").iterdir())):
        file.rename(file.with_name(f"copy{at}.parquet"))
    assert len(run.trials(arch="resnet56", seed=1)) == 2


def test_the_newer_row_of_a_trial_is_asked_not_the_one_that_matches(fill: Fill) -> None:
    run = results.load(fill("a", seeds=[1]))
    run.folder.compact()
    newer: dict[str, Any] = {**run.folder.trials.read().to_pylist()[0], "status": schema.FAILED}
    run.folder.write_trial(newer)
    assert newer["trial_id"] not in set(run.trials(status=schema.COMPLETED)["trial_id"])
    assert run.trials(status=schema.FAILED)["trial_id"].tolist() == [newer["trial_id"]]


def test_merged_files_have_row_groups_that_a_filter_can_skip(fill: Fill, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("results.store.tables.ROW_GROUP", 9)
    run = results.load(fill("a"))
    run.folder.compact()
    (file,) = (run.folder.path / "epochs").iterdir()
    assert pq.ParquetFile(file).num_row_groups == 4
    assert len(run.epochs(arch="resnet56", seed=42)) == 6


def test_what_cannot_be_asked_is_named_all_at_once(fill: Fill) -> None:
    run = results.load(fill("a"))
    with pytest.raises(RequestError) as caught:
        run.epochs(["test_ac"], archs="resnet56", seed="42")
    said = str(caught.value)
    assert "test_ac: no such column; did you mean 'test_acc'?" in said
    assert "archs: no such column; did you mean 'arch'?" in said
    assert "seed: expected a value of type int64, or a list of such, got '42'" in said


# Several folders


def test_several_folders(fill: Fill) -> None:
    a, b = fill("a"), fill("b", seeds=[42, 7], accuracy=80.0)
    Path("runs/none").mkdir()
    for run in (results.load(a, b), results.load([a, Path(b)]), results.load("runs/*"), results.load(a, "runs/*")):
        assert run.trials().groupby("run").size().to_dict() == {a: 12, b: 8}
        assert run.epochs(seed=42).groupby("run").size().to_dict() == {a: 12, b: 12}
        assert list(run.epochs(["run", "test_acc"], seed=7).columns) == ["run", "test_acc"]
    assert "run" in results.load("runs/[a]").trials(), "asked by a pattern, whatever it finds"
    assert "run" not in results.load(Path(a)).trials()
    with pytest.raises(RequestError, match="give one run folder, not 2: runs/a, runs/b"):
        results.load(a, b).folder.compact()


def test_paths_that_are_no_run_folders_are_all_named(fill: Fill) -> None:
    with pytest.raises(RequestError) as caught:
        results.load(fill("a"), "nowhere", "elsewhere/*")
    assert [problem.what.split(";")[0] for problem in caught.value.problems] == [
        "nowhere is no run folder: it has no `trials` in it",
        "elsewhere/* finds no run folder, that is one with `trials` in it",
    ]
    with pytest.raises(RequestError, match="give the --out of a sweep"):
        results.load()


def test_a_folder_whose_name_looks_like_a_pattern_is_itself(fill: Fill) -> None:
    assert len(results.load(fill("a[1]")).trials()) == 12


def test_the_table_counts_a_trial_once(fill: Fill) -> None:
    a, b = fill("a"), fill("b", seeds=[42, 7], accuracy=80.0)
    frame = results.load(a, b).leaderboard()
    assert (frame["n"] == 4).all()
    assert frame["mean"].tolist() == pytest.approx([(70.01 + 70.02 + 70.42 + 80.07) / 4] * len(frame))
    other = results.load(b, a).leaderboard()
    assert other["mean"].tolist() == pytest.approx([(70.01 + 70.02 + 80.42 + 80.07) / 4] * len(frame))


def test_what_no_grid_asked_for_is_not_missing(fill: Fill) -> None:
    both = fill("a", entries=[GAP], pairs=[VGG]), fill("b", entries=[GAP, GEM], pairs=[RESNET])
    frame = results.load(*both).leaderboard()
    assert (frame["missing"] == 0).all()
    assert len(frame) == 3
    gone = results.load(both[1]).trials(pool="gap", seed=1)["trial_id"][0]
    (Path(both[1]) / "trials" / f"{gone}.parquet").unlink()
    assert results.load(*both).leaderboard()["missing"].sum() == 1


def test_labels_and_roles_are_those_of_the_first_folder(fill: Fill) -> None:
    renamed = Entry(pool.expand("gem", label="mine")[0], "baseline")
    frame = results.load(fill("a"), fill("b", entries=[GAP, renamed], seeds=[9])).leaderboard()
    assert set(frame["pool"]) == {"gap", "ours <p>"}
    assert set(frame["n"]) == {4}


def test_recipes_of_several_folders_are_not_mixed(fill: Fill) -> None:
    run = results.load(fill("a"), fill("b", recipe=Recipe(epochs=3, lr=0.2)))
    with pytest.raises(RequestError, match="2 recipes"):
        run.leaderboard()
    assert len(run.leaderboard(allow_mixed=True)) == 8
    assert "2 recipes" in run._repr_html_()


def test_a_notebook_shows_the_table(fill: Fill) -> None:
    run = results.load(fill("a"))
    shown = run._repr_html_()
    text = render.to_text(render.Wide(run.leaderboard()))
    cell = re.search(r"\d\d\.\d\d ± \S+ \(3\)", text)
    assert cell
    assert cell[0] in shown
    assert "ours &lt;p&gt;" in shown
    assert "<p>" not in shown.split("</table>")[0], "whatever a pool is called"
    assert "resnet56-cifar100" in shown
    assert "best_test_acc in percent" in shown


# The command line


def commands() -> Mapping[str, argparse.ArgumentParser]:
    (found,) = (one for one in __main__._parser()._actions if isinstance(one, argparse._SubParsersAction))
    return found.choices


@pytest.mark.parametrize("name", commands())
def test_each_command_is_a_method_with_the_same_arguments_and_stands_in_the_readme(name: str) -> None:
    options = {one.dest for one in commands()[name]._actions} - {"help", "run"}
    taken = inspect.signature(getattr(results.Run, name)).parameters
    selection = {field.name for field in dataclasses.fields(Selection)} if "selection" in taken else set()
    assert options <= {*taken} | selection
    assert {*taken} - {"self", "selection"} <= options
    assert f"python -m results {name} RUN" in README.read_text(encoding="utf-8")


# The README


def blocks() -> list[str]:
    found = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    return [block for block in found if re.search(r"\bresults\b|parquet", block)]


@pytest.mark.parametrize("block", [pytest.param(block, id=f"block{at}") for at, block in enumerate(blocks())])
def test_examples_of_the_readme_run(block: str, fill: Fill) -> None:
    for package in ("polars", "duckdb", "matplotlib"):
        if re.search(rf"\bimport .*\b{package}\b", block) and importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    run = fill("mine", seeds=[1, 42, 123])
    fill("other")
    exec(compile(block.replace("RUN", run), str(README), "exec"), {})  # noqa: S102 - it is ours


def test_the_readme_has_examples() -> None:
    assert blocks()
