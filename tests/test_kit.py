"""`python -m benchmarks.kit`: what a machine lacks that reaches nothing, in pieces, and whole again there."""

from __future__ import annotations

import importlib.metadata
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.utils import canonicalize_name

from benchmarks import kit


@settings(max_examples=60, deadline=None)
@given(contents=st.lists(st.binary(max_size=5000), min_size=1, max_size=8), limit=st.integers(500, 60_000))
def test_what_was_cut_is_whole_again(contents: list[bytes], limit: int) -> None:
    """However large the pieces; and nothing is there before the last of them, whichever it is."""
    with tempfile.TemporaryDirectory() as name:
        source, here = Path(name, "source"), Path(name, "kit")
        source.mkdir()
        for index, data in enumerate(contents):
            (source / f"{index}.whl").write_bytes(data)
        kit.cut({"data/wheels": source}, here, limit)
        pieces = sorted(here.iterdir())
        assert all(piece.stat().st_size <= limit for piece in pieces)
        late = pieces[len(contents) % len(pieces)]
        data = late.read_bytes()
        late.unlink()
        assert len(pieces) == 1 or kit.join(here) == [late.name]
        assert not (here / "data").exists()
        late.write_bytes(data)
        assert kit.join(here) == []
        assert [(here / "data" / "wheels" / f"{index}.whl").read_bytes() for index in range(len(contents))] == contents


def test_what_a_machine_lacks() -> None:
    here = {canonicalize_name(found.name) for found in importlib.metadata.distributions()}
    assert kit.lacking(here, "3.11") == {}
    assert kit.lacking(here - {"pydantic"}, "3.11") == {"pydantic": importlib.metadata.version("pydantic")}
    gone = {"pydantic", "pydantic-core", "typing-inspection", "ray", "tensorboardx", "six"}
    lacks = kit.lacking(here - gone, "3.12")
    assert set(lacks) == gone - {"six"}, "of ray, what its part tune needs; six nobody asks for"
    assert lacks["ray"] == importlib.metadata.version("ray")
    assert {"torch", "ray", "pandas", "numpy", "jsonschema", "fsspec"} <= set(kit.lacking((), "3.11"))


def test_the_command_makes_pieces_and_joins_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def download(versions: Mapping[str, str], python: str, folder: Path) -> None:
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
    assert "kit/0of2: 1.0 MiB" in capsys.readouterr().out
    (tmp_path / "kit" / "1of2").rename(tmp_path / "late")
    monkeypatch.setattr("sys.argv", ["kit", "join", str(tmp_path / "kit")])
    with pytest.raises(SystemExit):
        kit.main()
    assert "lacks the pieces 1of2" in capsys.readouterr().err
    (tmp_path / "late").rename(tmp_path / "kit" / "1of2")
    kit.main()
    version = importlib.metadata.version("pydantic")
    assert [path.name for path in (tmp_path / "kit" / "wheels").iterdir()] == [f"pydantic-{version}.whl"]
    assert {path.name for path in (tmp_path / "kit" / "data").iterdir()} == set(kit.IMAGES)
