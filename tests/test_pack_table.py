"""How many trials train side by side: what was measured in the run folder, what ships, and what is measured."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from benchmarks.packs import figures, into_table
from orchestrator import pack_table
from orchestrator.packs import Measurements, best, is_whole, measured_sizes
from orchestrator.plan import make_plan
from orchestrator.record import Job
from orchestrator.resources import Node, Share
from orchestrator.sweep import Sweep
from results.store.folder import RunFolder
from search_spaces import pool
from search_spaces import space as spaces
from search_spaces.grid import BASELINE, Entry, Grid, Pair, Planned
from search_spaces.messages import shown_by
from search_spaces.recipe import Recipe
from trainer.augment import Images
from trainer.data import Dataset
from trainer.packs import Measurement

GPU = {"gpu": "NVIDIA H200", "gpu_memory_mb": 143_000.0, "free_mb": 140_000.0, "kernels": "2", "torch": "2.11"}
KIND = {"arch": "resnet20", "batch_size": 64, "precision": "bf16"}
WHEN = {"measured": "2026-11-30", "commit": "0123456789abcdef"}


def rows(rates: Mapping[int, float], **differs: Any) -> list[dict[str, Any]]:
    """Return rows of a table: packs of these sizes, at so many images/s, of 1,000 MiB a trial."""
    key = {**GPU, **KIND, **WHEN, **differs}
    found = [{**key, "size": size, "images_per_s": rate, "memory_mb": 1000.0 * size} for size, rate in rates.items()]
    return [{name: row[name] for name in pack_table.COLUMNS} for row in found]


# The table


def test_what_ships_is_a_table_and_each_entry_is_whole() -> None:
    with pack_table.TABLE.open(encoding="utf-8", newline="") as file:
        assert tuple(next(csv.reader(file))) == pack_table.COLUMNS
    shipped = pack_table.read()
    for row in shipped:
        found = pack_table.find(shipped, row)
        assert is_whole(found), row
        assert len({one["size"] for one in found}) == len(found), "one measurement a size"


def tables() -> st.SearchStrategy[list[dict[str, Any]]]:
    keys = st.fixed_dictionaries(
        {
            "gpu": st.sampled_from(["NVIDIA H200", 'of "quotes", commas']),
            "gpu_memory_mb": st.sampled_from([40_000.0, 81_000.0]),
            "kernels": st.sampled_from(["2", "2 without norm, sgd", "10"]),
            "torch": st.sampled_from(["2.1", "2.10", "2.11"]),
            "arch": st.sampled_from(["resnet56", "vgg16bn"]),
        }
    )
    rates = st.dictionaries(st.sampled_from([1, 2, 4, 8, 16]), st.integers(1, 10**6).map(float), min_size=1)
    made = st.lists(st.tuples(keys, rates), unique_by=lambda pair: repr(sorted(pair[0].items())), max_size=6)
    return made.map(lambda pairs: [row for key, found in pairs for row in rows(found, **key)])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(table=tables(), data=st.data())
def test_a_table_is_read_as_it_was_written_in_an_order_of_its_own(
    tmp_path: Path, table: list[dict[str, Any]], data: st.DataObject
) -> None:
    path, other = tmp_path / "packs.csv", tmp_path / "other.csv"
    pack_table.write(table, path)
    pack_table.write(data.draw(st.permutations(table)), other)
    assert path.read_bytes() == other.read_bytes()
    read = pack_table.read(path)
    assert all(row in table for row in read)
    assert len(read) == len(table)


@given(table=tables(), new=tables())
def test_what_is_merged_replaces_its_own_keys_and_no_other(
    table: list[dict[str, Any]], new: list[dict[str, Any]]
) -> None:
    merged = pack_table.merge(table, new)
    for row in (*table, *new):
        expected = pack_table.find(new, row) or pack_table.find(table, row)
        assert pack_table.find(merged, row) == expected
    assert len(pack_table.merge(merged, new)) == len(merged), "twice is as once"


@pytest.mark.parametrize(
    "differs",
    [
        {"gpu": "NVIDIA H200 MIG 1g.18gb"},
        {"gpu_memory_mb": 71_000.0},
        {"kernels": "1"},
        {"kernels": "2 without norm"},
        {"torch": "2.1"},
        {"torch": "2.13"},
        {"arch": "resnet56"},
        {"batch_size": 128},
        {"precision": "tf32"},
    ],
    ids=str,
)
def test_a_measurement_of_anything_else_does_not_count(differs: dict[str, Any]) -> None:
    table = rows({1: 100.0, 2: 200.0, 4: 201.0})
    assert [row["size"] for row in pack_table.find(table, {**GPU, **KIND})] == [1, 2, 4]
    assert not pack_table.find(table, {**GPU, **KIND, **differs})
    assert pack_table.find(table, {**GPU, **KIND, "gpu_memory_mb": 143_771.0}), "drivers keep more or less of it"


# What is taken into it


def of_a_benchmark(rates: Mapping[int, float], **differs: Any) -> list[dict[str, Any]]:
    """Return its rows, those that packs are compared with among them."""
    packs = [{**row, "graphs": True, "channels_last": True, "way": "..."} for row in rows(rates, **differs)]
    others = ({"graphs": False}, {"channels_last": False}, {"cudnn_benchmark": True})
    return [*({**packs[0], **other} for other in others), *packs, {"what": "a job of a rental", "failed": "..."}]


def test_packs_that_grew_until_it_no_longer_paid_are_taken_in(tmp_path: Path) -> None:
    table = tmp_path / "packs.csv"
    old = rows({1: 10.0, 2: 10.0})
    pack_table.write([*old, *rows({1: 30.0, 2: 30.0}, precision="fp32")], table)
    whole, cut = {1: 100.0, 2: 180.0, 4: 182.0}, {1: 100.0, 2: 180.0}
    said = list(into_table([*of_a_benchmark(whole), *of_a_benchmark(cut, arch="vgg11bn")], table))
    assert [line.split(":")[0] for line in said] == ["taken in", "left out, for larger packs were not measured"]
    assert "packs of 1, 2, 4" in said[0]
    assert "vgg11bn" in said[1]
    read = pack_table.read(table)
    assert pack_table.find(read, {**GPU, **KIND}) == rows(whole), "the old ones are gone"
    assert len(read) == 5, "another precision's stay"


def test_a_benchmarks_row_says_what_the_table_has_to_know(digits: Dataset, tmp_path: Path) -> None:
    found = figures(Measurement(2, 1.0, 2.0, 300.0, 1000.0), Images(digits, torch.device("cpu")), False, True)
    assert {*pack_table.COLUMNS} - {*found} == {"arch", "precision"}, "whoever measures adds these"
    assert (found["gpu"], found["kernels"]) == (None, None)
    assert found["torch"] == ".".join(torch.__version__.split(".")[:2])
    pack_table.write([], tmp_path / "packs.csv")
    rows = [{**found, "arch": "resnet56", "precision": "bf16"}]
    assert not list(into_table(rows, tmp_path / "packs.csv")), "a CPU is no GPU type"


@pytest.mark.parametrize(
    ("rates", "whole"),
    [({1: 9.0}, False), ({1: 9.0, 2: 9.1}, True), ({1: 9.0, 2: 18.0}, False), ({8: 9.0, 16: 18.0}, True)],
)
def test_packs_are_whole_that_no_longer_pay_or_are_as_large_as_can_be(rates: Mapping[int, float], whole: bool) -> None:
    assert is_whole(rows(rates)) == whole


# Which counts


@pytest.fixture
def todo() -> list[Planned]:
    entries = tuple(Entry(pool.expand(spec)[0], BASELINE) for spec in ("gap", "gem"))
    recipe = Recipe(epochs=2, batch_size=64, precision="bf16")
    return list(Grid("packs", entries, (Pair("resnet20", "digits"),), (1, 2), recipe))


class Measure:
    """Measures that packs of `size` are the fastest, on a GPU that may be another than the one asked about."""

    def __init__(self, size: int, gpu: Mapping[str, Any] = GPU):
        self.size, self.gpu, self.calls = size, gpu, 0

    def __call__(self, pack: Sequence[Planned]) -> tuple[Mapping[str, Any], Measurements]:
        self.calls += 1
        found = {"start_s": 1.0, "epoch_s": 1.0, "memory_mb": 10.0}
        return self.gpu, [{"size": size, "images_per_s": 100.0 * size, **found} for size in (1, self.size)]


def size(todo: list[Planned], run: RunFolder, measure: Measure, table: Any, gpu: Mapping[str, Any] = GPU) -> int:
    return measured_sizes(todo, run, gpu, measure, table)["resnet20", "digits"]


def test_the_run_folder_counts_before_the_table_and_the_table_before_a_measurement(
    run: RunFolder, todo: list[Planned]
) -> None:
    said: list[str] = []
    table, measure = rows({1: 100.0, 4: 400.0, 8: 401.0}), Measure(2)
    with shown_by(said.append):
        assert size(todo, run, measure, table) == 4
        assert measure.calls == 0
        assert not run.pack_sizes.read(), "what ships is not this folder's to claim"
        assert size(todo, run, measure, []) == 2
        assert size(todo, run, measure, table) == 2
    assert measure.calls == 1
    shown = "resnet20-digits: {} side by side (images/s by how many: {}; {})"
    assert said == [
        shown.format(4, "1: 100, 4: 400, 8: 401", "shipped: measured on 2026-11-30 at commit 0123456789"),
        "measuring how many trials of resnet20-digits to train side by side ...",
        shown.format(2, "1: 100, 2: 200", "measured now on NVIDIA H200"),
        shown.format(2, "1: 100, 2: 200", "measured in this run folder"),
    ]


@pytest.mark.parametrize("differs", [{"kernels": "3"}, {"torch": "2.12"}, {"gpu": "NVIDIA L4"}], ids=str)
def test_other_kernels_another_torch_or_gpu_are_measured_again(
    run: RunFolder, todo: list[Planned], differs: dict[str, str]
) -> None:
    table, other = rows({1: 100.0, 4: 400.0, 8: 401.0}), {**GPU, **differs}
    measure = Measure(2, other)
    assert size(todo, run, Measure(8), []) == 8
    assert size(todo, run, measure, table, other) == 2
    assert size(todo, run, measure, table, other) == 2
    assert measure.calls == 1
    assert size(todo, run, Measure(16), []) == 8, "the first GPU's own is still there"


def test_what_was_measured_on_another_gpu_is_recorded_as_that_ones(run: RunFolder, todo: list[Planned]) -> None:
    """In a cluster of several types Ray says where a task runs."""
    assert size(todo, run, Measure(4, {**GPU, "gpu": "NVIDIA L4"}), []) == 4
    assert [key for key in run.pack_sizes.read() if "NVIDIA L4" in key] == list(run.pack_sizes.read())


def test_a_pack_fits_into_what_is_free(run: RunFolder, todo: list[Planned]) -> None:
    table = rows({1: 100.0, 2: 200.0, 4: 400.0, 8: 401.0})
    for free_mb, fits in ((10_000.0, 4), (3999.0, 2), (1500.0, 1), (1.0, 1)):
        assert size(todo, run, Measure(16), table, {**GPU, "free_mb": free_mb}) == fits


def test_a_measurement_without_memory_is_of_a_cpu_and_fits() -> None:
    found = [{"size": k, "images_per_s": 100.0 * k, "memory_mb": None} for k in (1, 2)]
    assert best(found, 1.0) == 2


def test_a_sweep_measures_what_the_table_lacks_on_a_worker(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    from orchestrator import ray_tune

    (tmp_path / "space.yaml").write_text(
        "name: auto\nrecipe: {batch_size: 64, precision: bf16}\narchitectures: [resnet20, vgg11bn]\n"
        "datasets: [digits]\npools: [gap, gem]\nseeds: [1, 2]\nresources: {trials_per_gpu: auto}\n"
    )
    space, job, measure = spaces.load(tmp_path / "space.yaml"), Job(run.where, gpu=True), Measure(2)
    asked: list[tuple[str, Any]] = []

    def on_worker(name: str, share: Share, *arguments: Any) -> Any:
        asked.append((name, share))
        return GPU if name == "gpu" else measure(arguments[0])

    monkeypatch.setattr(ray_tune, "on_worker", on_worker)
    monkeypatch.setattr(pack_table, "read", lambda: rows({1: 100.0, 4: 400.0, 8: 401.0}))
    sweep = Sweep(space, run, make_plan(space, run), tmp_path, "local", Console())
    each, nodes = Share(1, 1), [Node(8, 1, "H200"), Node(8, 1, "L4")]
    said: list[str] = []
    with shown_by(said.append):
        packs = sweep._packs(list(space.grid), {"digits": cast(Dataset, None)}, job, each, nodes[:1])
        assert not any("GPUs differ" in line for line in said)
        sweep._packs(list(space.grid), {"digits": cast(Dataset, None)}, job, each, nodes)
    assert sorted((pack[0].trial.arch, len(pack)) for pack in packs) == [
        ("resnet20", 4),
        ("vgg11bn", 2),
        ("vgg11bn", 2),
    ]
    assert asked == [("gpu", each), ("measure", each), ("gpu", each)]
    (note,) = (line for line in said if "GPUs differ" in line)
    assert "(H200, L4), and packs are of the size that is best on NVIDIA H200; resources.accelerator_type" in note
