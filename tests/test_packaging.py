"""What is installed of this project: all that it imports, and what it ships."""

from __future__ import annotations

import tomllib
from pathlib import Path

from setuptools import find_packages

ROOT = Path(__file__).parents[1]
TOP = ("orchestrator", "results", "search_spaces", "trainer")


def test_every_package_and_every_file_that_is_shipped() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = set(find_packages(str(ROOT), include=settings["packages"]["find"]["include"]))
    shipped = {
        path
        for name, forms in settings["package-data"].items()
        for form in forms
        for path in ROOT.joinpath(name).glob(form)
    }
    files = [path for top in TOP for path in (ROOT / top).rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert len(files) > 100
    for path in files:
        is_module = path.suffix == ".py" and ".".join(path.parent.relative_to(ROOT).parts) in packages
        assert is_module or path in shipped, path
