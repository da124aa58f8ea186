"""`python -m benchmarks.reproduce`: a leaderboard in pieces, on a machine that may lack half of what it needs."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from benchmarks import reproduce
from results.store import verify
from results.store.folder import RunFolder
from search_spaces.errors import RequestError

SPACE = """
name: piece
recipe: {epochs: 50, batch_size: 32, lr: 0.02, train_samples: 96, test_samples: 40}
pairs:
  - {arch: resnet20, dataset: digits}
pools: [{name: gap, role: baseline}]
seeds: [1, 2]
checkpoint_every: 1000
"""


@pytest.mark.soak
def test_a_piece_and_the_rest(tmp_path: Path, ray_address: str, capfd: pytest.CaptureFixture[str]) -> None:
    space, run = tmp_path / "space.yaml", tmp_path / "run"
    space.write_text(SPACE)
    command = [str(tmp_path), str(run), "--space", str(space), "--address", ray_address]
    folder = RunFolder(run)
    for budget in (8, 12, 20, 40):  # until trials have begun in it, however loaded the machine is
        assert reproduce.main([*command, "--time-budget", str(budget)]) == 130, "it was over before its time was"
        said = capfd.readouterr()
        assert "the time budget is used up; what has finished is kept. To go on:" in said.err
        assert "there is more to do: run the same command again" in said.out
        if any("stopped after epoch" in (folder.log_text(one) or "") for one in folder.logs()):
            break
    assert reproduce.main([*command, "--time-budget", "500"]) == 0
    assert len(folder.ended()) == 2
    assert verify.verify(folder).findings == ()
    assert any("resumed after epoch" in (folder.log_text(one) or "") for one in folder.logs())
    with tarfile.open(tmp_path / "run.tar.gz") as archive:
        names = archive.getnames()
    assert len([name for name in names if name.startswith("run/trials/")]) == 2
    assert not [name for name in names if "checkpoints" in name or "weights" in name or "/.tmp" in name]


def test_on_another_machine_it_goes_on_from_what_was_packed(run: RunFolder, tmp_path: Path) -> None:
    files = {"trials/a.parquet", "epochs/a.parquet", "logs/a.log", "space.yaml"}
    for name in files | {"checkpoints/b.pt", "weights/a.pt", "trials/.tmp-1"}:
        (tmp_path / "run" / name).write_text(name)
    reproduce.pack(tmp_path / "run", tmp_path / "packed.tar.gz")
    elsewhere = tmp_path / "elsewhere"
    reproduce.unpack(tmp_path / "packed.tar.gz", elsewhere)
    there = {str(path.relative_to(elsewhere)): path for path in elsewhere.rglob("*") if path.is_file()}
    assert {name: path.read_text() for name, path in there.items()} == {name: name for name in files}


def test_what_is_missing_is_named_with_how_to_bring_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reproduce.missing() == [], "pyproject.toml names what is not installed here"
    needs = [Requirement("no-such-package>=2"), Requirement("torch>=1"), Requirement("numpy>=99")]
    monkeypatch.setattr(reproduce, "dependencies", lambda: needs)
    assert reproduce.main(["images", "run"]) == 2
    lacks = "this machine lacks no-such-package>=2, numpy>=99; --wheels DIR brings it (`python -m benchmarks.kit`)"
    assert capsys.readouterr().err == f"error: {lacks}\n"


def test_wheels_are_unpacked_beside_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wheels").mkdir()
    make_wheel(tmp_path / "wheels", "poolsweep_test_module")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", "somewhere")
    monkeypatch.setattr(reproduce, "dependencies", lambda: [Requirement("poolsweep-test-module>=1")])
    reproduce.provide(tmp_path / "wheels")
    child = "import os, poolsweep_test_module as m; print(m.answer, os.environ['PYTHONPATH'].split(os.pathsep)[1])"
    done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True)
    assert done.stdout == "42 somewhere\n"
    assert importlib.util.find_spec("poolsweep_test_module") is not None
    monkeypatch.setattr(reproduce, "dependencies", lambda: [Requirement("another-module")])
    with pytest.raises(RequestError, match=f"lacks another-module; and is not in {tmp_path / 'wheels'}"):
        reproduce.provide(tmp_path / "wheels")


def make_wheel(folder: Path, name: str) -> None:
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": "answer = 42\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
