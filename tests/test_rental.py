"""`python -m benchmarks.rental`: rehearsed without a GPU, Ray and pydantic, since there is one try."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.rental import __main__ as rental
from benchmarks.rental import checks, evidence, networks, pieces, plan, train, trainer
from benchmarks.rental.settings import Rows, Settings, read_json, write_json
from results import load
from results.store.folder import RunFolder
from results.store.verify import verify
from search_spaces import kernels
from search_spaces.errors import RequestError
from search_spaces.machine import ROOT
from tests.rental_stages.counted import counted
from trainer.precompile import apart
from trainer.train import Program

HOUR = 3600.0
MISSING = "raise ImportError('not on the machine that is rented')"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    run = tmp_path / "pieces" / "run"
    later = time.time() + HOUR
    return Settings(str(tmp_path / "out"), str(run.with_name("data")), str(run), later, later, rehearse=True)


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """The environment of a Python that has no Ray and no pydantic."""
    for name in ("ray", "pydantic"):
        (tmp_path / "bare" / name).mkdir(parents=True)
        (tmp_path / "bare" / name / "__init__.py").write_text(MISSING)
    return os.environ | {"PYTHONPATH": str(tmp_path / "bare")}


def rehearse(tmp_path: Path, environment: dict[str, str], *args: str) -> subprocess.CompletedProcess[str]:
    """Run stages on a CPU; what they print is shown if a test fails."""
    where = ["--rehearse", "--out", str(tmp_path / "out"), "--pieces", str(tmp_path / "pieces")]
    command = [sys.executable, "-m", "benchmarks.rental", *args, *where]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    print(done.stdout[-6000:], done.stderr)
    return done


def unpacked(tmp_path: Path) -> RunFolder:
    print(*pieces.unpack(tmp_path / "out", tmp_path / "unpacked"), sep="\n")
    return RunFolder(tmp_path / "unpacked")


# The whole


@pytest.mark.soak
def test_all_of_it(tmp_path: Path, bare: dict[str, str]) -> None:
    done = rehearse(tmp_path, bare, *rental.LIMITS, "--seconds", "600", "--train-seconds", "900")
    assert done.returncode == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    found = {f"{stage}.json" for stage in rental.LIMITS} - {"join.json", "precompile.json", "train.json"}
    assert names == {*found, "log.txt", evidence.EVIDENCE}
    assert all(read_json(tmp_path / "out" / name) for name in found)
    checked = read_json(tmp_path / "out" / "checks.json")
    assert checked["off"] == []
    assert all(row["ok"] for row in checked["rows"])
    assert {row["check"] for row in checked["rows"]} >= {"twins", "alone", "eager", "poisoned", "resumed", "dropout"}
    run = unpacked(tmp_path)
    assert len(run.ended()) == 4
    assert verify(run).findings == ()


def test_what_trains_is_read_by_results(tmp_path: Path, bare: dict[str, str]) -> None:
    """From the bare machine's evidence, by all that a reader asks of it."""
    trained = rehearse(tmp_path, bare, "env", "join", "ceilings", "train", "--pack", "resnet20 digits gap,maximum 42")
    assert trained.returncode == 0
    assert read_json(tmp_path / "out" / "env.json")["missing"] == []
    assert next(row["what"] for row in read_json(tmp_path / "out" / "ceilings.json")) == "copy"
    assert not list((tmp_path / "out").glob(".*"))
    run = unpacked(tmp_path)
    assert {how.status for how in run.ended().values()} <= {"completed", "collapsed"}
    assert len(run.ended()) == 2
    assert verify(run).findings == ()
    table = load(run.path).leaderboard()
    assert {"gap", "maximum"} <= set(str(table).split())
    assert len(load(run.path).reproduce()) == 0, "no figure of digits is published"
    rows = run.trials.read(["git_commit", "recipe"]).to_pylist()
    assert all(json.loads(row["recipe"])["precision"] == "bf16" for row in rows)
    (pack,) = read_json(tmp_path / "unpacked" / "train.json")["packs"]
    assert (pack["exit_code"], pack["off"], len(pack["status"])) == (0, "", 2)


def test_what_a_signal_leaves_goes_on_elsewhere(tmp_path: Path, bare: dict[str, str]) -> None:
    command = ["train", "--pack", "resnet20 digits gem 123"]
    where = ["--rehearse", "--out", str(tmp_path / "out"), "--pieces", str(tmp_path / "pieces"), "--stay", "0"]
    subprocess.run([sys.executable, "-m", "benchmarks.rental", *command, *where], cwd=ROOT, env=bare, check=True)
    place, ends = tmp_path / "pieces", time.monotonic() + 120
    while not list(place.glob("run/attempts/*")) and time.monotonic() < ends:
        time.sleep(0.02)
    os.kill(int((place / "lock").read_text()), signal.SIGTERM)
    while train.at_work(place) and time.monotonic() < ends:
        time.sleep(0.05)
    train.copy(place, tmp_path / "out")
    print((place / "train.txt").read_text())
    run = unpacked(tmp_path)
    assert not run.ended(), "it was over before the signal came"
    assert len(list(run.path.glob("checkpoints/*.pt"))) == 1
    run.path.rename(tmp_path / "elsewhere_run")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere_run").rename(tmp_path / "elsewhere" / "run")
    again = [sys.executable, "-m", "benchmarks.rental", *command, *where[:3], "--pieces", str(tmp_path / "elsewhere")]
    subprocess.run([*again, "--out", str(tmp_path / "out2")], cwd=ROOT, env=bare, check=True)
    run = RunFolder(tmp_path / "elsewhere" / "run")
    (trial_id,) = run.ended()
    log = run.trial(trial_id).log_text() or ""
    assert "resumed after epoch" in log, log
    assert verify(run).findings == ()


# Stages


def test_no_stage_stops_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    """Not by failing, and not by hanging with a child that hangs too and a SIGTERM that it does not hear."""
    monkeypatch.setattr(rental, "PACKAGE", "tests.rental_stages")
    monkeypatch.setattr(rental, "GRACE_S", 0.3)
    monkeypatch.setattr(rental, "LIMITS", {"fails": (60, 0), "hangs": (1, 0), "late": (60, 1e9), "fine": (60, 0)})
    after = rental._after

    def after_it_has_measured(seconds: float, child: Any) -> Any:  # however slow the machine is
        while seconds <= 5 and not settings.result("hangs.json").exists():
            time.sleep(0.02)
        return after(seconds, child)

    monkeypatch.setattr(rental, "_after", after_it_has_measured)
    monkeypatch.chdir(ROOT)
    stages = rental.Stages(settings, stay=0)
    assert stages.run(["fails", "hangs", "fine"]) == 2
    assert read_json(settings.result("fine.json")) == {"fine": True}
    assert read_json(settings.result("hangs.json")) == [{"measured": 1}], "what was measured before it hung"
    log = settings.result("log.txt").read_text()
    assert "  ! RuntimeError: no such kernel" in log
    assert "all is well" in log
    assert stages.run(["late"]) == 0
    assert "late: no time is left for it" in settings.result("log.txt").read_text()


def test_what_comes_later_keeps_its_time(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    given: dict[str, float] = {}
    monkeypatch.setattr(rental, "LIMITS", {"one": (60, 5), "two": (90, 20), "train": (1e9, 1)})
    monkeypatch.setattr(rental.Stages, "_stage", lambda _, stage, seconds: given.update({stage: seconds}) or 0)
    told = Settings(settings.out, settings.data, settings.run, time.time() + 71, time.time() + HOUR)
    rental.Stages(told, stay=7).run(["one", "two", "train"])
    assert given == {"one": pytest.approx(50, abs=1), "two": pytest.approx(70, abs=1), "train": 7}


def test_a_job_that_ends_its_process_costs_itself(settings: Settings) -> None:
    command = [sys.executable, "-m", "benchmarks.rental.jobs", "tests.rental_stages.jobs", settings.to_json()]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "job 1 ended its process with exit code 139" in said
    rows = read_json(settings.result("jobs.json"))
    assert rows == [{"job": "first"}, {"what": "fails", "failed": "RuntimeError: out of resources"}, {"job": "last"}]


def test_rows_are_whole_whoever_is_killed(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "rows.json")
    for number in range(3):
        rows.add({"number": number, "third": number / 3})
        assert read_json(tmp_path / "rows.json")[-1]["number"] == number
    assert [row["third"] for row in Rows(tmp_path / "rows.json", go_on=True)] == [0.0, 0.33333, 0.66667]
    assert [path.name for path in tmp_path.iterdir()] == ["rows.json"]


# Checks


def test_a_layer_that_is_wrong_is_found() -> None:
    part = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    x = torch.randn(4, 4, 16, 16)

    def right(_: nn.Module, __: str) -> Any:
        return lambda: None

    def forgets_the_gradient(part: nn.Module, _: str) -> Any:
        return lambda: setattr(part[1].weight, "grad", None)  # type: ignore[index]

    def scales(part: nn.Module, _: str) -> Any:
        part.register_forward_hook(lambda *given: given[-1] * 1.2)
        return lambda: None

    for precision in ("fp32", "bf16"):
        assert checks.part_is_right(part, x, precision, right)["ok"]
        assert not checks.part_is_right(part, x, precision, scales)["ok"]
        assert checks.part_is_right(part, x, precision, forgets_the_gradient)["error"] == float("inf")


def test_images_need_no_gradient() -> None:
    """The kernel of a network's first layers gives none."""
    part = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())

    def has_none(part: nn.Module, _: str) -> Any:
        part.register_forward_pre_hook(lambda _, given: given[0].detach())
        return lambda: None

    assert checks.part_is_right(part, torch.randn(4, 3, 16, 16), "bf16", has_none)["ok"]


def test_not_a_number_is_equal_to_nothing() -> None:
    one, nan = torch.ones(3), torch.full((3,), float("nan"))
    assert checks._equal([one], [one.clone()])["ok"]
    assert not checks._equal([nan], [nan.clone()])["ok"]
    assert not checks._equal([nan], [nan.clone()], bitwise=False)["ok"]
    assert checks._equal([one], [one + 1e-3], bitwise=False)["ok"]
    assert not checks._equal([one], [one + 1e-3])["ok"]


def test_dropout_that_draws_nothing_is_found() -> None:
    images = networks.images(8, 4, torch.device("cpu"))
    program = Program(networks.trial("vgg11bn", batch_size=4), images)
    assert checks.dropout_draws(program)["ok"]
    for layer in program.network.head.modules():
        if isinstance(layer, checks.Dropout):
            layer.forward = lambda input: input  # type: ignore[method-assign]
    assert not checks.dropout_draws(program)["ok"]


# Kernels


def test_the_kernels_that_are_timed_are_those_that_are_launched() -> None:
    ours, expected = apart(counted)
    assert sum(count for count, _ in ours) == len(expected) > len(ours) > 20
    assert sum(count * moved for count, moved in ours) == sum(expected) > 0


# The images


def parquet(folder: Path, name: str, size: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(name.encode() * (size // len(name)))


def test_pieces_fit_and_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE", 6000)
    parquet(tmp_path / "data" / "fashion_mnist", "train-00000-of-00001.parquet", 3000)
    for index in range(3):
        parquet(tmp_path / "data" / "cifar100", f"train-0000{index}-of-00003.parquet", 2900)
    target = tmp_path / "rental"
    said = list(pieces.cut(tmp_path / "data", target))
    assert len(said) == 2
    for number in range(2):
        assert sum(path.stat().st_size for path in (target / str(number)).glob("*/*")) <= 6000
    (target / "1").rename(tmp_path / "late")
    assert len(pieces.join(target)) == 2
    (tmp_path / "late").rename(target / "1")
    joined = pieces.join(target)
    assert joined == sorted(str(path.relative_to(tmp_path / "data")) for path in (tmp_path / "data").glob("*/*"))
    assert all((target / "data" / one).read_bytes() == (tmp_path / "data" / one).read_bytes() for one in joined)
    monkeypatch.setattr(pieces.machine, "commit", lambda: None)
    assert pieces.commit(target) is None, "images are cut on another day than the code is sent"
    monkeypatch.setattr(pieces, "PIECE", 2000)
    with pytest.raises(RequestError, match="which no transfer takes"):
        list(pieces.cut(tmp_path / "data", tmp_path / "other"))
    parquet(tmp_path / "late" / "fashion_mnist", "test.parquet", 90)
    with pytest.raises(RequestError, match="no Parquet files of cifar100"):
        list(pieces.cut(tmp_path / "late", tmp_path / "other"))


def test_checkpoints_travel_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as fit, the small ones first; each part is a file that comes back."""
    monkeypatch.setattr(evidence, "FILE", 60_000)
    monkeypatch.setattr(evidence, "COMES_BACK", evidence.OTHERS + 300_000)
    run, out = tmp_path / "place" / "run", tmp_path / "out"
    (run / "checkpoints").mkdir(parents=True)
    out.mkdir()
    contents = {"a.pt": os.urandom(80_000), "b.pt": os.urandom(70_000), "vgg.pt": os.urandom(200_000)}
    for name, data in contents.items():
        (run / "checkpoints" / name).write_bytes(data)
    write_json(run / "train.json", {"packs": []})
    for left in (["b.pt", "a.pt"], ["b.pt"]):
        assert evidence.pack_checkpoints(run, run.parent) == left
        (run / "checkpoints" / "a.pt").unlink(missing_ok=True)
    evidence.pack(run, run.parent)
    train.copy(run.parent, out)
    assert sorted(path.name for path in out.iterdir()) == ["checkpoints.tar.0", "checkpoints.tar.1", evidence.EVIDENCE]
    assert all(path.stat().st_size <= 60_000 for path in out.iterdir())
    assert read_json(unpacked(tmp_path).path / "train.json") == {"packs": []}
    there = {path.name: path.read_bytes() for path in (tmp_path / "unpacked" / "checkpoints").iterdir()}
    assert there == {"b.pt": contents["b.pt"]}


def test_no_more_files_come_back_than_may(tmp_path: Path) -> None:
    """All parts of the checkpoints or none: one is of no use."""
    place, out = tmp_path / "place", tmp_path / "out"
    for folder in (place, out):
        folder.mkdir()
    for number in range(6):
        (out / f"{number}.json").write_text("{}")
    for name in ("checkpoints.tar.0", "checkpoints.tar.1", evidence.EVIDENCE):
        (place / name).write_text("packed")
    for fewer, parts in ((0, []), (1, ["checkpoints.tar.0", "checkpoints.tar.1"])):
        (out / f"{fewer}.json").unlink()
        (out / "log.txt").write_text("")
        train.copy(place, out)
        assert sorted(path.name for path in out.iterdir())[5 - fewer :] == [*parts, evidence.EVIDENCE, "log.txt"]
    (place / "checkpoints.tar.1").unlink()
    train.copy(place, out)
    assert len(list(out.glob(evidence.PART))) == 1, "a part of another time has stayed"


def test_what_the_first_command_said_holds_for_the_next(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """When training ends, what is switched off, and paces, though OUT is another folder then."""
    monkeypatch.setenv(kernels.SWITCH, "norm")
    place = Path(settings.run).parent
    place.mkdir(parents=True)
    write_json(settings.result("packs.json"), [{"arch": "resnet20"}])
    assert train.remembered(settings, place) == settings
    monkeypatch.setenv(kernels.SWITCH, "")
    later = dataclasses.replace(settings, out=f"{settings.out}2", train_until=settings.train_until + 500)
    assert train.remembered(later, place) == dataclasses.replace(later, train_until=settings.train_until)
    assert os.environ[kernels.SWITCH] == "norm"
    assert read_json(place / "packs.json") == [{"arch": "resnet20"}]
    write_json(place / "told.json", {"until": time.time() - 1, "off": "norm"})  # of another day
    assert train.remembered(later, place) == later


# What is trained, and when


def test_the_published_table_is_planned_in_order_of_worth(settings: Settings) -> None:
    full = Settings(settings.out, settings.data, settings.run, 0, 0)
    grid = plan.grid(full)
    requests = plan.wanted(full, grid, {})
    assert [len(request) for request in requests] == [1, 1, *[4, 4, 4, 6, 6, 6] * 2]
    assert [str(request[0].trial) for request in requests[:3]] == [
        "gap mobilenetv2-fmnist seed 42",
        "gap mobilenetv2_2x2-fmnist seed 42",
        "gap mobilenetv2-fmnist seed 42",
    ]
    assert {planned.trial.recipe.precision for planned in grid} == {"bf16"}
    four, two = (requests[index][0].trial.id for index in (0, 1))
    measured = plan.wanted(full, grid, {four: 93.9, two: 94.6})
    assert {planned.trial.arch for planned in measured[2]} == {"mobilenetv2_2x2"}, "which came closer"
    with pytest.raises(RequestError, match="no trial of published is of 'resnet56 fmnist gap 42'"):
        plan.wanted(Settings(settings.out, "", "", 0, 0, packs=("resnet56 fmnist gap 42",)), grid, {})


def test_a_pack_is_started_only_if_it_ends_in_time(settings: Settings) -> None:
    full = Settings(settings.out, settings.data, settings.run, 0, 0)
    requests = plan.wanted(full, plan.grid(full), {})
    vgg, resnet = (next(one for one in requests if one[0].trial.arch == arch) for arch in ("vgg16bn", "resnet56"))
    paces = plan.Paces()
    paces.learn(
        {"arch": arch, "size": size, "ms_a_step": ms, "precision": "bf16"}
        for arch, size, ms in (("vgg16bn", 1, 1.5), ("vgg16bn", 2, 1.2), ("vgg16bn", 4, 1.0), ("resnet56", 4, 0.7))
    )
    images = {"cifar100": 50_000}
    steps = 200 * 391

    def sizes(left: float, *requests: Any, done: dict[str, int] | None = None) -> list[tuple[str, int]]:
        pack = plan.choose(requests, left, done or {}, images, paces)
        return [(pack[0].trial.arch, len(pack))] if pack else []

    assert plan.seconds(vgg, {}, 50_000, paces) == pytest.approx(15 + 1.08 * 4 * steps * 1.0e-3)
    assert sizes(400, vgg, resnet) == [("vgg16bn", 4)]
    assert sizes(330, vgg, resnet) == [("vgg16bn", 3)], "at the pace of two"
    assert sizes(230, vgg, resnet) == [("vgg16bn", 2)]
    assert sizes(150, vgg, resnet) == [("vgg16bn", 1)]
    assert sizes(120, vgg, resnet) == [("resnet56", 1)], "what is next in worth and ends in time"
    assert sizes(60, vgg, resnet) == [("resnet56", 4)], "which does not end, but travels"
    assert sizes(60, vgg) == []
    assert sizes(40, vgg, resnet) == []
    half_done = {planned.trial.id: 150 for planned in vgg}
    assert sizes(120, vgg, resnet, done=half_done) == [("vgg16bn", 4)]
    mobile = requests[0]
    assert sizes(60, mobile, vgg) == [], "its images are not there yet"
    images["fmnist"] = 60_000
    assert sizes(60, mobile, vgg) == [("mobilenetv2", 1)], "of unknown pace: it measures it"


def test_paces_are_of_what_trains() -> None:
    paces = plan.Paces()
    row = {"arch": "resnet56", "size": 2, "ms_a_step": 1.0, "precision": "bf16", "graphs": True}
    paces.learn([row, row | {"size": 1, "graphs": False}, row | {"size": 4, "cudnn_benchmark": True}])
    assert paces.known == {"resnet56": {2: 1.0}}
    assert (paces.of("resnet56", 1), paces.of("resnet56", 8), paces.of("vgg16bn", 1)) == (1.0, 1.0, None)
    paces.add("resnet56", 4, 0.8)
    assert (paces.best("resnet56"), paces.best("vgg16bn")) == (4, plan.UNKNOWN)


def test_one_thing_less_after_each_fault() -> None:
    way, families = trainer.Way(), plan.families_of("mobilenetv2_2x2")
    assert way.step_back(["norm", *families]) == "kernels of norm off"
    said = [way.step_back(["norm", *families]) for _ in range(len(families) + 2)]
    assert len(set(said)) == len(families) + 2
    assert said[-3:] == ["graphs off", "one trial at a time", "given up"]
    assert (sorted(way.off), way.given_up) == (sorted(families), True)


def test_each_network_has_its_own_kernels() -> None:
    for arch, lacks in (("resnet56", "depthwise"), ("vgg16bn", "basic_block"), ("mobilenetv2", "convolution")):
        assert lacks not in plan.families_of(arch)
        assert {"norm", "crops", "sgd"} <= set(plan.families_of(arch)) < set(kernels.FAMILIES)
    assert set().union(*map(plan.families_of, plan.READINGS), *map(plan.families_of, ("resnet56", "vgg16bn"))) == set(
        kernels.FAMILIES
    )


def test_kernels_are_blamed_by_the_log(settings: Settings) -> None:
    one = trainer.Trainer(settings)
    said = Path(settings.run).with_name("train.txt")
    said.write_text('File "/x/trainer/device/kernels/sgd.py", line 3\n')
    pack = list(one._grid)[:1]
    before = [len(text) for text in one._logs(pack)]
    with one._run.trial(pack[0].trial.id).open_log() as log:
        for name in ("norm", "depthwise", "convolution"):
            log.write(f'File "/x/trainer/device/kernels/{name}.py", line 3\n')
    assert one._blamed(pack, before) == ["convolution", "norm"], "not what ResNet has not, nor what an older pack says"
    assert one._blamed(pack, [0, 0]) == ["convolution", "norm", "sgd"]


def test_a_pack_that_fails_is_tried_with_less(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here every one fails, whatever it does without, until its architecture is given up; and all is on record."""
    monkeypatch.setattr(trainer.sys, "executable", "false")
    monkeypatch.setattr(trainer, "LOOK_EVERY_S", 0.01)
    one = trainer.Trainer(settings)
    one.train()
    record = read_json(Path(settings.run) / "train.json")
    assert [row["then"] for row in record["packs"]][-3:] == ["graphs off", "one trial at a time", "given up"]
    families = plan.families_of("resnet20")
    assert record["packs"][2]["off"].split(",") == list(families[:2])
    assert record["packs"][-1]["off"].split(",") == list(families)
    assert record["packs"][-1]["graphs"] is False
