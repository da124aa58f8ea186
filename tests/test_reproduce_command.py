"""`python -m benchmarks.reproduce`: a leaderboard in pieces, on a machine that may lack half of what it needs."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import pytest

from benchmarks import reproduce
from results.audit import verify
from results.store import RunFolder

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
        if any("left after epoch" in (folder.log_text(one) or "") for one in folder.logs()):
            break
    assert reproduce.main([*command, "--time-budget", "500"]) == 0
    assert len(folder.ended()) == 2
    assert verify.verify(folder).findings == ()
    assert any("resumed after epoch" in (folder.log_text(one) or "") for one in folder.logs())
    with tarfile.open(tmp_path / "run.tar.gz") as archive:
        names = archive.getnames()
    assert len([name for name in names if name.startswith("run/trials/")]) == 2
    assert not [name for name in names if "checkpoints" in name or "weights" in name or "/.tmp" in name]


def test_what_is_missing_is_named_with_how_to_bring_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduce, "NEEDED", {"torch": "torch", "no_such_module": "no-such-package"})
    problem = reproduce.provide(None)
    assert problem == (
        "this machine lacks no-such-package; bring them: pip download --dest DIR no-such-package, then --wheels DIR"
    )


def test_wheels_that_were_cut_are_joined_and_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = make_wheel(tmp_path, "poolsweep_test_module")
    data = wheel.read_bytes()
    for index, start in enumerate(range(0, len(data), 100)):
        wheel.with_name(f"{wheel.name}.{index:02}").write_bytes(data[start : start + 100])
    wheel.unlink()
    site = tmp_path / "site"
    monkeypatch.setenv("PIP_TARGET", str(site))
    monkeypatch.setattr(reproduce, "NEEDED", {"poolsweep_test_module": "poolsweep-test-module"})
    assert reproduce.provide(tmp_path) is None
    assert (site / "poolsweep_test_module.py").read_text() == "answer = 42\n"
    monkeypatch.setattr(reproduce, "NEEDED", {"another_module": "another-module"})
    problem = reproduce.provide(tmp_path)
    assert problem is not None
    assert f"another-module cannot be installed from {tmp_path}: " in problem


def make_wheel(folder: Path, name: str) -> Path:
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": "answer = 42\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
    return path
