"""What a rental says of kernels: which are to blame, what each takes; and that no row of it is of another rental."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import packs as all_packs
from benchmarks.rental import ceilings, checks, jobs, packs, plan, precompile
from benchmarks.rental import kernels as timed
from benchmarks.rental.settings import Row, Rows, Settings, read_json, without, write_json
from orchestrator import pack_table
from search_spaces import kernels
from search_spaces.machine import ROOT
from tests.test_pack_table import rows as of_packs
from trainer import compile_once
from trainer.data import PAD, SIZE, Dataset
from trainer.precompile import Case

HOUR = 3600.0


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    later = time.time() + HOUR
    return Settings(str(tmp_path / "out"), str(tmp_path / "data"), str(tmp_path / "run"), later, later, rehearse=True)


# What is to blame


class Process:
    """Stands for `in_new_process` within this one: nothing of a check outlives its call, but what is on the disk."""

    def __init__(self, checks_of: Callable[[int], Any]):
        self._checks_of, self._lock, self._calls = checks_of, threading.Lock(), itertools.count()

    def __call__(
        self, settings: Settings, arch: str, file: Path, off: Collection[str], only: Sequence[str] = ()
    ) -> tuple[int, list[Row]]:
        with self._lock, without(",".join(off)), pytest.MonkeyPatch.context() as patch:
            patch.setattr(checks, "all_checks", self._checks_of(next(self._calls)))
            try:
                checks.check(settings, arch, file, only)
            except (Exception, SystemExit):
                return 1, read_json(file)
        return 0, read_json(file)


class FakeProgram:
    """A trial whose kernels round in ways of their own, of which `norm` does one thing wrong."""

    def __init__(self, *_: Any, graphs: bool = True):
        self.graphs, self._sums = graphs, torch.zeros(1)

    def state(self) -> dict[str, Any]:
        return {"network": {}, "momentum": []}


def fake_equalities(monkeypatch: pytest.MonkeyPatch, wrong: str, calls: Sequence[int]) -> None:
    """Have programs be wrong in one check, in these of all processes."""

    def checks_of(call: int) -> Any:
        eager_runs = itertools.count()

        def take_turns(programs: Sequence[FakeProgram], _: int) -> None:
            rounding = sum(kernels.FAMILIES.index(family) + 1 for family in kernels.off()) * 2**-20
            eager = not programs[0].graphs
            poisoned = eager and next(eager_runs) == 1
            bad = {"alone": len(programs) == 1 and not eager, "eager": eager, "poisoned": poisoned}[wrong]
            for program in programs:
                program._sums += 1 + rounding + 0.5 * (bad and "norm" not in kernels.off() and call in calls)

        def some(*given: Any) -> Any:
            monkeypatch.setattr(checks, "take_turns", take_turns)
            return itertools.islice(checks.equalities(*given), 4)

        return some

    monkeypatch.setattr(checks.networks, "images", lambda *_: None)
    monkeypatch.setattr(checks, "Program", FakeProgram)
    monkeypatch.setattr(checks, "in_new_process", Process(checks_of))


@pytest.mark.parametrize("wrong", ["alone", "eager", "poisoned"])
def test_the_family_that_is_wrong_is_blamed_and_no_other(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    fake_equalities(monkeypatch, wrong, range(100))
    assert checks.check_network(settings, "resnet20", tmp_path / "rows.json")
    rows = read_json(tmp_path / "rows.json")
    assert [row["check"] for row in rows] == ["twins", "alone", "eager", "poisoned"]
    assert {row["check"]: row.get("off") for row in rows if not row["ok"]} == {wrong: ["norm"]}


def test_nothing_is_to_blame_for_what_passes_when_it_is_done_again(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_equalities(monkeypatch, "alone", [0])
    assert checks.check_network(settings, "resnet20", tmp_path / "rows.json")
    assert [row["check"] for row in read_json(tmp_path / "rows.json") if not row["ok"]] == ["alone"]
    assert not any("off" in row for row in read_json(tmp_path / "rows.json"))


def test_a_kernel_that_loses_the_gpu_is_switched_off_and_the_rest_is_checked(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = list[int]()  # processes of which no call is answered any more
    here = list[int]()

    def raise_if_lost() -> None:
        if here[-1] in lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def launches(family: str) -> Row:
        if family not in kernels.off():
            lost.append(here[-1])
        return {"ok": True}  # of which the GPU tells later

    def checks_of(call: int) -> Any:
        here.append(call)
        names = ("crops", "convolution", "norm", "loss")
        bad = ("convolution", "loss")
        return lambda *_: [
            (name, (lambda name=name: launches(name)) if name in bad else (lambda: {"ok": True})) for name in names
        ]

    monkeypatch.setattr(jobs, "raise_if_lost", raise_if_lost)
    monkeypatch.setattr(checks, "in_new_process", Process(checks_of))
    assert checks.check_network(settings, "resnet20", tmp_path / "rows.json")
    found = [(row["check"], row["ok"], row.get("off")) for row in read_json(tmp_path / "rows.json")]
    assert found == [
        ("crops", True, None),
        ("convolution", False, ["convolution"]),
        ("norm", True, None),
        ("loss", False, ["loss"]),
    ]


def test_a_check_that_ends_its_process_is_on_record(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In real processes; an old checks.json, and what it switches off, is none of theirs."""
    sizes = dataclasses.replace(settings.sizes, checked=("resnet20",))
    monkeypatch.setattr(Settings, "sizes", sizes)
    monkeypatch.setattr(checks, "MODULE", "tests.rental_stages.dies")
    monkeypatch.setattr(checks, "families_of", lambda _: ("sgd",))
    write_json(settings.result("checks.json"), {"off": ["stem"], "rows": []})
    checks.main(settings)
    found = read_json(settings.result("checks.json"))
    assert found["off"] == ["sgd"]
    before, dies, after = found["rows"]
    assert (before["ok"], dies["ok"], dies["off"], after["ok"]) == (True, False, ["sgd"], True)
    assert dies["error_said"] == "its process ended with exit code 139"
    assert after["off_here"] == ["sgd"]


def test_there_is_time_left_to_find_out_what_is_to_blame(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = dataclasses.replace(settings, deadline=time.time() + checks.BLAMING_S - 1)
    asked = [("right", lambda: {"ok": True}), ("wrong", lambda: {"ok": False}), ("later", lambda: {"ok": True})]
    monkeypatch.setattr(checks, "all_checks", lambda *_: asked)
    with pytest.raises(SystemExit, match="later has to wait"):
        checks.check(late, "resnet20", tmp_path / "rows.json", ())
    checks.check(late, "resnet20", tmp_path / "rows.json", ())
    assert [(row["check"], row["ok"]) for row in read_json(tmp_path / "rows.json")] == [
        ("right", True),
        ("wrong", False),
        ("later", True),
    ]


# What kernels take


def test_each_kernel_is_on_record_as_soon_as_it_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if another raises, or if the stage is ended by its limit."""
    functions = [SimpleNamespace(__module__="a.norm", __name__=name) for name in ("first", "raises", "last")]
    calls = [timed.Call(SimpleNamespace(fn=function), (), {}, count=3) for function in functions]
    raised: dict[str, BaseException] = {"raises": RuntimeError("out of resources")}

    def figures(call: timed.Call, _: torch.device) -> Row:
        if error := raised.get(call.function.fn.__name__):
            raise error
        return {"us": 2.0, "us_step": 2.0 * call.count}

    monkeypatch.setattr(timed, "_figures", figures)
    timed.time_all(calls, {"arch": "resnet20"}, torch.device("cpu"), Rows(tmp_path / "all.json"))
    found = read_json(tmp_path / "all.json")
    assert [row.get("kernel") for row in found] == ["norm.first", "norm.raises", "norm.last", None]
    assert [row.get("us_step") for row in found] == [6.0, None, 6.0, 12.0]
    assert found[1]["failed"] == "RuntimeError: out of resources"
    raised["last"] = SystemExit()
    with pytest.raises(SystemExit):
        timed.time_all(calls, {"arch": "resnet20"}, torch.device("cpu"), Rows(tmp_path / "ended.json"))
    assert read_json(tmp_path / "ended.json") == found[:2]


def test_ceilings_are_timed_as_kernels_are(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "microseconds", lambda work, device: 1000.0)
    monkeypatch.setattr(ceilings, "from_argv", lambda: settings)
    write_json(settings.result("ceilings.json"), [{"what": "of another rental"}])
    ceilings.main()
    rows = read_json(settings.result("ceilings.json"))
    assert [row["what"] for row in rows] == ["copy", "mm torch.bfloat16", "mm torch.float32"]
    assert rows[0]["GB/s"] == pytest.approx(2 * settings.sizes.copied / 1e-3 / 1e9, rel=1e-4)
    assert rows[1]["TFLOP/s"] == pytest.approx(2 * settings.sizes.square**3 / 1e-3 / 1e12, rel=1e-4)


# Rows of this rental, and no others


def test_a_stage_begins_its_file_anew_and_goes_on_with_it_after_a_job_that_ended(settings: Settings) -> None:
    write_json(settings.result("jobs.json"), [{"job": "of another rental"}])
    command = [sys.executable, "-m", "benchmarks.rental.jobs", "tests.rental_stages.jobs", settings.to_json()]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    found = [row.get("job", row.get("what")) for row in read_json(settings.result("jobs.json"))]
    assert found == ["first", "fails", "last"]


def test_packs_of_which_a_size_was_measured_twice_are_not_taken_in(tmp_path: Path) -> None:
    """Twice cut short is not whole, however the rows lie."""
    table = tmp_path / "packs.csv"
    pack_table.write([], table)
    way = {"graphs": True, "channels_last": True}
    short = [row | way for row in of_packs({1: 100.0, 2: 200.0})]
    other = [row | way for row in of_packs({1: 100.0, 2: 101.0}, arch="vgg16bn")]
    said = list(all_packs.into_table([*short, *other, *short], table))
    assert [line.partition(":")[0] for line in said] == ["left out, for a size was measured twice", "taken in"]
    assert [row["arch"] for row in pack_table.read(table)] == ["vgg16bn"] * 2


def test_packs_are_of_the_same_trials_whoever_measures_them() -> None:
    assert packs.endless is all_packs.endless


# What is compiled ahead


PUBLISHED = {"cifar100": (50_000, 10_000, 3, 100), "fmnist": (60_000, 10_000, 1, 10)}  # by those who publish them


def zeros(name: str) -> Dataset:
    """Images as `trainer.data.load` returns them, which take no memory."""
    train, test, channels, classes = PUBLISHED[name]
    images = [
        np.zeros((count, side, side, channels), np.uint8) for count, side in ((train, SIZE + 2 * PAD), (test, SIZE))
    ]
    labels = [np.zeros(count, np.int64) for count in (train, test)]
    statistics = (0.5,) * channels, (0.25,) * channels
    return Dataset(name, classes, True, images[0], labels[0], images[1], labels[1], *statistics)


def test_a_pack_compiles_nothing_that_the_rental_has(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all that is published: by the stage as it runs, and then as a trial looks for its kernels."""
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(precompile, "apart", lambda call, *_: [{}] if call is precompile.launched else [])
    compiled = list[Case]()
    monkeypatch.setattr(compile_once.precompile, "precompile", lambda cases, _: compiled.extend(cases) or [])
    for module in (precompile, compile_once.precompile):
        monkeypatch.setattr(module, "this_capability", lambda: 90)
    full = dataclasses.replace(settings, rehearse=False)
    precompile.phase(full, 0)
    data = {name: zeros(name) for name in PUBLISHED}
    trials = [planned.trial for planned in plan.grid(full)]
    cases = {Case.of(trial, data[trial.dataset]) for trial in trials}
    assert len(cases) == len(plan.PAIRS)
    assert cases <= {*precompile.all_cases(full, "bf16")}
    for trial in trials:
        compile_once.for_trial(trial, data[trial.dataset], torch.device("cuda"))
    assert compiled == []
    monkeypatch.setattr(compile_once.precompile, "this_capability", lambda: 80)
    compile_once.for_trial(trials[0], data[trials[0].dataset], torch.device("cuda"))
    assert len(compiled) == 1, "on another GPU"
