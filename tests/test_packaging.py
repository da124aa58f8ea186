"""What is installed of this project, and that the files around it agree with each other."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml
from setuptools import find_packages

ROOT = Path(__file__).parents[1]
TOP = ("orchestrator", "results", "search_spaces", "trainer")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_and_every_file_that_is_shipped() -> None:
    settings = PYPROJECT["tool"]["setuptools"]
    packages = set(find_packages(str(ROOT), include=settings["packages"]["find"]["include"]))
    shipped = {
        path
        for name, forms in settings["package-data"].items()
        for form in forms
        for path in ROOT.joinpath(name).glob(form)
    }
    assert {ROOT / package / "py.typed" for package in TOP} <= shipped, "types are for users too"
    files = [path for top in TOP for path in (ROOT / top).rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert len(files) > 100
    for path in files:
        is_module = path.suffix == ".py" and ".".join(path.parent.relative_to(ROOT).parts) in packages
        assert is_module or path in shipped, path


def test_one_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    (newest, *_) = re.findall(r"^## \[(.+?)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert cited["version"] == newest == PYPROJECT["project"]["version"]
    assert cited["license"] == PYPROJECT["project"]["license"]
    assert {"cff-version", "title", "message", "authors"} <= cited.keys()
    assert cited["references"][0]["identifiers"][0]["value"] == "arXiv:2605.08678"


def test_ci_calls_targets_that_there_are() -> None:
    there = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    called = set(re.findall(r"^make (\S+)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE))
    assert called == {"check", "test", "soak"}
    for workflow in (ROOT / ".github" / "workflows").glob("*.yml"):
        for job in yaml.safe_load(workflow.read_text())["jobs"].values():
            called |= set(job["strategy"]["matrix"]["target"])
            assert [step["run"] for step in job["steps"] if "run" in step] == ["make ${{ matrix.target }}"]
    assert called == {"check", "test", "soak", "test-oldest"}
    assert called <= there


def test_hooks_call_what_is_installed() -> None:
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    dev = "".join(PYPROJECT["project"]["optional-dependencies"]["dev"])
    assert repo["repo"] == "local"
    for hook in repo["hooks"]:
        tool = hook["entry"].split()[0].removeprefix(".venv/bin/")
        assert tool in dev
        assert f"$(BIN)/{tool}" in (ROOT / "Makefile").read_text()
