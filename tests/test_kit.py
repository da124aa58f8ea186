"""`python -m benchmarks.kit`: what a machine lacks that reaches nothing, in pieces, and whole again there."""

from __future__ import annotations

import importlib.metadata
import shutil
import tempfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.utils import canonicalize_name

from benchmarks import kit


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(0, 50), min_size=1, max_size=8), limit=st.integers(1, 60), random=st.randoms())
def test_what_was_cut_is_whole_again(sizes: list[int], limit: int, random: object) -> None:
    """However large the pieces, and in whatever order they come."""
    with tempfile.TemporaryDirectory() as folder:
        here, there = Path(folder, "here"), Path(folder, "there")
        there.mkdir()
        contents = {f"{index}.whl": bytes(random.getrandbits(8) for _ in range(n)) for index, n in enumerate(sizes)}  # type: ignore[attr-defined]
        source = Path(folder, "source")
        source.mkdir()
        for name, data in contents.items():
            (source / name).write_bytes(data)
        kit.cut([("wheels", source / name) for name in contents], here, limit)
        pieces = sorted(here.iterdir()) if here.exists() else []
        assert all(sum(p.stat().st_size for p in piece.rglob("*") if p.is_file()) <= limit for piece in pieces)
        random.shuffle(pieces)  # type: ignore[attr-defined]
        for arrived, piece in enumerate(pieces, 1):
            shutil.copytree(piece, there / piece.name)
            waiting = kit.join(there)
            whole = {path.name: path.read_bytes() for path in (there / "wheels").glob("*")}
            assert whole.items() <= contents.items(), "what is there is whole"
            assert not waiting or arrived < len(pieces)
        assert {name for name, data in contents.items() if data} <= {path.name for path in (there / "wheels").glob("*")}


def test_what_a_machine_lacks() -> None:
    here = {canonicalize_name(found.name) for found in importlib.metadata.distributions()}
    assert kit.lacking(here, "3.11") == {}
    assert kit.lacking(here - {"pydantic"}, "3.11") == {"pydantic": importlib.metadata.version("pydantic")}
    gone = {"pydantic", "pydantic-core", "typing-inspection", "ray", "tensorboardx", "six"}
    lacks = kit.lacking(here - gone, "3.12")
    assert set(lacks) == gone - {"six"}, "of ray, what its part tune needs; six nobody asks for"
    assert lacks["ray"] == importlib.metadata.version("ray")
    assert {"torch", "ray", "pandas", "numpy", "jsonschema", "fsspec"} <= set(kit.lacking((), "3.11"))


def test_part_of_a_wheel_is_left_out(tmp_path: Path) -> None:
    wheel = tmp_path / "ray-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in ("ray/__init__.py", "ray/jars/ray.jar", "ray-1.dist-info/METADATA"):
            archive.writestr(name, name)
    kit.leave_out(wheel, kit.JAVA)
    with zipfile.ZipFile(wheel) as archive:
        assert archive.namelist() == ["ray/__init__.py", "ray-1.dist-info/METADATA"]
        assert archive.read("ray/__init__.py") == b"ray/__init__.py"
    assert [path.name for path in tmp_path.iterdir()] == [wheel.name]


def test_the_command_makes_pieces_and_joins_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def download(versions: dict[str, str], python: str, folder: Path) -> None:
        folder.mkdir()
        for name, version in versions.items():
            (folder / f"{name}-{version}.whl").write_bytes(b"w" * 700_000)

    monkeypatch.setattr(kit, "download", download)
    for name in kit.IMAGES:
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "train-00000-of-00001.parquet").write_bytes(name.encode() * 50_000)
    names = {found.name for found in importlib.metadata.distributions()} - {"pydantic"}
    (tmp_path / "there.txt").write_text("".join(f"{name}==1.0\n" for name in names))
    made = ["make", str(tmp_path / "kit"), "--there", str(tmp_path / "there.txt"), "--piece", "1"]
    monkeypatch.setattr("sys.argv", ["kit", *made, "--data-dir", str(tmp_path / "images")])
    kit.main()
    assert "kit/0: 2 files, 1.0 MiB" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "kit" / "1")
    monkeypatch.setattr("sys.argv", ["kit", "join", str(tmp_path / "kit")])
    kit.main()
    assert "waits for its other parts: " in capsys.readouterr().err
    version = importlib.metadata.version("pydantic")
    assert [path.name for path in (tmp_path / "kit" / "wheels").iterdir()] == [f"pydantic-{version}.whl"]
