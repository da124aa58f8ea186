"""`python -m benchmarks.rental train`, and what goes into it and comes back: what is lost, and what is said of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.rental import __main__ as rental
from benchmarks.rental import env, evidence, pieces, plan, train, trainer
from benchmarks.rental.settings import Settings, read_json, write_json
from search_spaces import kernels
from search_spaces.errors import RequestError

HOUR = 3600.0
MIB = 2**20


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    run = tmp_path / "pieces" / "run"
    later = time.time() + HOUR
    (tmp_path / "out").mkdir()
    return Settings(str(tmp_path / "out"), str(run.with_name("data")), str(run), later, later, rehearse=True)


@pytest.fixture
def place(settings: Settings) -> Path:
    Path(settings.run, "checkpoints").mkdir(parents=True)
    return Path(settings.run).parent


def brought_back(place: Path, out: Path, sizes: dict[str, int]) -> dict[str, bytes]:
    """Pack and copy checkpoints of these sizes, and return them."""
    contents = {name: os.urandom(size) for name, size in sizes.items()}
    for name, data in contents.items():
        (place / "run" / "checkpoints" / name).write_bytes(data)
    evidence.pack_checkpoints(place / "run", place)
    evidence.pack(place / "run", place)
    train.copy(place, out)
    return contents


# Checkpoints


def test_all_that_comes_back_is_less_than_may(tmp_path: Path, place: Path) -> None:
    """Of four checkpoints of MobileNetV2 three, whatever else is there; and none where that leaves them no room."""
    out = tmp_path / "out"
    (out / "log.txt").write_bytes(bytes(2 * MIB))
    brought_back(place, out, {f"{number}.pt": 17_800_000 for number in range(4)})
    assert sum(path.stat().st_size for path in out.iterdir()) < 64 * MIB
    assert len(list(pieces.unpack(out, tmp_path / "unpacked"))) == 1 + 3
    (out / "profile.json").write_bytes(bytes(15 * MIB))
    train.copy(place, out)
    assert not list(out.glob(evidence.PART)), "one file too many would cost all of them"


@pytest.mark.parametrize(("lost", "left"), [(0, []), (1, ["a.pt"]), (3, ["a.pt", "b.pt"]), ("all", []), (None, None)])
def test_what_is_whole_is_unpacked(
    tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch, lost: int | str | None, left: list[str] | None
) -> None:
    """Whichever part is lost: no cut checkpoint is written, and it is said which do not come back."""
    monkeypatch.setattr(evidence, "FILE", 60_000)
    out, run = tmp_path / "out", tmp_path / "unpacked"
    contents = brought_back(place, out, {"a.pt": 50_000, "b.pt": 60_000, "c.pt": 100_000})
    assert len(list(out.glob(evidence.PART))) == 4
    for part in out.glob(f"checkpoints.tar.{'*' if lost == 'all' else lost}"):
        part.unlink()
    said = []
    if left is None:
        said += pieces.unpack(out, run)
    else:
        with pytest.raises(RequestError, match=rf"missing: {', '.join(sorted(set(contents) - set(left)))}$"):
            said.extend(pieces.unpack(out, run))
    there = {path.name: path.read_bytes() for path in run.glob("checkpoints/*")}
    assert there == {name: contents[name] for name in (contents if left is None else left)}
    assert (run / pieces.CHECKPOINTS).exists(), "the evidence"


def test_a_part_of_another_time_is_not_taken(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "FILE", 60_000)
    out = tmp_path / "out"
    brought_back(place, out, {"a.pt": 50_000, "b.pt": 60_000})
    older = (out / "checkpoints.tar.0").read_bytes()
    contents = brought_back(place, out, {"a.pt": 50_000, "b.pt": 60_000})
    (out / "checkpoints.tar.1").write_bytes(older)
    with pytest.raises(RequestError, match=r"missing: b\.pt$"):
        list(pieces.unpack(out, tmp_path / "unpacked"))
    there = {path.name: path.read_bytes() for path in (tmp_path / "unpacked" / "checkpoints").iterdir()}
    assert there == {"a.pt": contents["a.pt"]}


# The stage


def run_stage(settings: Settings, monkeypatch: pytest.MonkeyPatch, works: list[bool], over: list[bool | None]) -> int:
    """Run it; return how many trainers it has started.

    Args:
        works: whether a trainer is at work, look by look, and not from then on.
        over: of each trainer that is started, whether it says at its end that it has trained; None if it dies.
    """
    looks, ends, started = iter(works), iter(over), list[object]()

    def start(_: Settings, place: Path) -> subprocess.Popen[bytes]:
        child = subprocess.Popen(["true"])
        child.wait()
        started.append(child)
        if (trained := next(ends)) is not None:
            write_json(place / train.MARK, {"trained": trained})
        return child

    monkeypatch.setattr(train, "start", start)
    monkeypatch.setattr(train, "at_work", lambda _: next(looks, False))
    monkeypatch.setattr(train, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(train, "from_argv", lambda: settings)
    monkeypatch.setenv(kernels.SWITCH, "")
    train.main()
    return len(started)


def test_a_trainer_that_an_earlier_command_started_is_started_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no child of this one, so how it ended is known by the mark alone, which it leaves at its own end."""
    assert run_stage(settings, monkeypatch, [True, True, False], [None, True]) == 2


def test_a_trainer_that_dies_again_and_again_fails_the_stage(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match="the trainer died"):
        run_stage(settings, monkeypatch, [True, False], [None] * train.STARTS)


def test_no_trainer_is_started_when_the_time_is_up(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_json(tmp_path / "pieces" / "told.json", {"until": time.time() + 0.5, "off": ""})
    after = time.time() + 0.6

    def works(_: Path) -> bool:
        return time.time() < after

    monkeypatch.setattr(train, "start", lambda *_: pytest.fail("it was started"))
    monkeypatch.setattr(train, "at_work", works)
    monkeypatch.setattr(train, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(train, "from_argv", lambda: settings)
    with pytest.raises(SystemExit, match="the trainer died"):
        train.main()


def test_a_trainer_that_was_killed_goes_on_in_the_next_command(tmp_path: Path) -> None:
    """The real one, killed while the second command is with it."""
    where = ["--rehearse", "--out", str(tmp_path / "out"), "--pieces", str(tmp_path / "pieces")]
    command = [sys.executable, "-m", "benchmarks.rental", "train", "--pack", "resnet20 digits gap 42", *where]
    subprocess.run([*command, "--stay", "0"], check=True)
    place, ends = tmp_path / "pieces", time.monotonic() + 120
    while not list(place.glob("run/attempts/*")) and time.monotonic() < ends:
        time.sleep(0.02)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as second:
        assert second.stdout
        for line in second.stdout:
            if "s to train" in line:
                os.kill(int((place / "lock").read_text()), 9)
                break
        said = second.stdout.read()
    assert second.returncode == 0, said
    assert read_json(place / train.MARK) == {"trained": True}
    if "the trainer died; it is started again" not in said:
        pytest.skip("it was over before it was killed")
    assert said.count("s to train;") == 1


def test_what_is_missing_is_said(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without any images the trainer ends at once, and the stage fails."""
    full = Settings(**{**json.loads(settings.to_json()), "packs": (), "rehearse": False})
    place = Path(full.run).parent
    place.mkdir(parents=True)
    one = trainer.Trainer(full)
    monkeypatch.setattr(trainer.time, "sleep", lambda _: pytest.fail("it waits for images"))
    one.train()
    monkeypatch.undo()
    assert not one.has_trained()
    with pytest.raises(SystemExit, match="nothing was ever trained"):
        run_stage(full, monkeypatch, [False], [one.has_trained()])
    said = capfd.readouterr().out
    assert f"there are no images of cifar100, fmnist, or not all, in {full.data}" in said
    assert f"python -m benchmarks.rental pieces DATA_DIR {place}`" in said


def test_images_are_missing_until_all_their_files_are_there(settings: Settings) -> None:
    full = Settings(
        **{**json.loads(settings.to_json()), "packs": ("resnet56 cifar100 baseline 42",), "rehearse": False}
    )
    requests = plan.wanted(full, plan.grid(full), {})
    folder = Path(full.data, "cifar100")
    folder.mkdir(parents=True)
    for name in ("test.parquet", "train-00000-of-00002.parquet"):
        (folder / name).write_bytes(b"")
        assert plan.missing(full, requests) == ["cifar100"]
    (folder / "train-00001-of-00002.parquet").write_bytes(b"")
    assert plan.missing(full, requests) == []


# What the next rental knows


def test_faults_and_paces_are_known_to_the_next_rental(tmp_path: Path, settings: Settings, place: Path) -> None:
    """Beside the checkpoints, as the trainer packs them at one time."""
    (place / "run" / "checkpoints" / "a.pt").write_bytes(b"of now")
    one = trainer.Trainer(settings)
    one._paces.add("resnet20", 2, 7.5)
    one._way("resnet20").step_back(["norm"])
    one._pack()
    train.copy(place, tmp_path / "out")
    list(pieces.unpack(tmp_path / "out", tmp_path / "next" / "run"))
    assert (tmp_path / "next" / "run" / "checkpoints" / "a.pt").read_bytes() == b"of now"
    told = Settings(settings.out, settings.data, str(tmp_path / "next" / "run"), 0, 0, rehearse=True)
    two = trainer.Trainer(told)
    assert two._paces.known == {"resnet20": {2: 7.5}}
    assert two._way("resnet20").off == ["norm"]


# Which code, which kernels, which folder


def test_the_commit_is_that_of_the_code_that_is_sent(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine without git: as it was noted last, and none where there was none."""
    target = Path(settings.data).parent
    for noted in ("a" * 40, "b" * 40, None):
        monkeypatch.setattr(pieces.machine, "commit", lambda noted=noted: noted)
        assert rental.main(["commit", str(target)]) == 0
        monkeypatch.setattr(pieces.machine, "commit", lambda: None)
        assert pieces.commit(target) == noted
        monkeypatch.setattr(env, "from_argv", lambda: settings)
        env.main()
        assert read_json(tmp_path / "out" / "env.json")["commit"] == noted


def test_checks_look_anew(settings: Settings) -> None:
    """What they found wrong before is off for the others alone: else it would pass, and be on for those that follow."""
    write_json(settings.result("checks.json"), {"off": ["norm"], "rows": []})
    stages = rental.Stages(settings, stay=0)
    assert stages._environment("packs")[kernels.SWITCH] == "norm"
    assert stages._environment("checks")[kernels.SWITCH] == ""


def test_a_rehearsal_has_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runs: list[str] = []
    monkeypatch.setattr(rental.Stages, "run", lambda self, _: runs.append(self._settings.run) or 0)
    for more in ([], ["--rehearse"], ["--rehearse", "--pieces", "given"]):
        rental.main(["train", "--out", "out", *more])
    assert runs == [str(tmp_path / name / "run") for name in (".rental", ".rental/rehearsal", "given")]
