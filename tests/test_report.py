"""The report: one page that fetches nothing, and the pictures in it."""

from __future__ import annotations

import html.parser
import math
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from orchestrator.record import epoch_rows, row
from results.__main__ import main
from results.store import schema
from results.store.folder import RunFolder
from search_spaces import pool
from search_spaces.grid import BASELINE, CANDIDATE, Entry, Grid, Pair, Planned
from search_spaces.recipe import Recipe
from trainer.outcome import Epoch

HOSTILE = "<script>alert(1)</script>"
QUOTES = """"&' $x$ _"""
SEEDS = (42, 123, 456)
PAIRS = (Pair("resnet56", "cifar100"), Pair("vgg16bn", "cifar10"), Pair("mobilenetv2", "fmnist"))
ENTRIES = tuple(
    Entry(pool.expand(name)[0], role)
    for name, role in (("gap", BASELINE), ("global_max", BASELINE), ("gem", CANDIDATE), ("se", CANDIDATE))
)
TOP = {"resnet56": 71.8, "vgg16bn": 93.4, "mobilenetv2": 94.1}
GAIN = {"gap": 0.0, "global_max": -2.4, "gem": 0.6, "se": 0.25}
SPENT = {"gap": (0, 1.0), "global_max": (0, 1.2), "gem": (1, 2.8), "se": (514, 1.7)}

Build = Callable[..., RunFolder]


def grid_of(
    entries: tuple[Entry, ...] = ENTRIES, epochs: int = 200, pairs: tuple[Pair, ...] = PAIRS, seeds: tuple = SEEDS
) -> Grid:
    return Grid("g", entries, pairs, seeds, Recipe(epochs=epochs))


def history(planned: Planned, epochs: int, diverges: bool = False) -> list[Epoch]:
    """A climb along the cosine of the learning rate, with the noise of a high rate."""
    trial = planned.trial
    name = trial.pool.name
    draw = np.random.default_rng([trial.seed, zlib.crc32(f"{name} {trial.arch}".encode())])
    top = TOP[trial.arch] + GAIN[name] + draw.normal(0, 0.25)
    found = []
    for epoch in range(1, epochs + 1):
        rate = 0.05 * (1 + math.cos(math.pi * epoch / trial.recipe.epochs))
        accuracy = (
            top * (1 - math.exp(-epoch / (0.05 * trial.recipe.epochs))) - 160 * rate + draw.normal(0, 30 * rate + 0.05)
        )
        loss = math.nan if diverges and epoch == epochs else 4 - accuracy / 30
        found.append(Epoch(epoch, loss, accuracy, loss, max(1.0, accuracy), rate, 11.5 + draw.normal(0, 0.2), 4500.0))
    return found


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """A run folder with every trial of a grid completed, but for {(pool, arch, seed): status, or epochs so far}."""

    def make(other: dict[tuple[str, str, int], str | int | None] | None = None, grid: Grid | None = None) -> RunFolder:
        grid = grid or grid_of()
        run = RunFolder(tmp_path / "run")
        run.create()
        run.write_grid(grid)
        for number, planned in enumerate(grid):
            trial = planned.trial
            status = (other or {}).get((trial.pool.name, trial.arch, trial.seed), schema.COMPLETED)
            if status is None:
                continue
            done = {schema.COMPLETED: grid.recipe.epochs, schema.INVALID: 0}.get(str(status), grid.recipe.epochs // 3)
            epochs = history(planned, status if isinstance(status, int) else done, status == schema.DIVERGED)
            if epochs:
                run.epochs.write(trial.id, epoch_rows(trial, epochs))
            if isinstance(status, int):
                continue
            parameters, times = SPENT[trial.pool.name]
            error = f"RuntimeError: {HOSTILE}\nat line 3" if status in (schema.FAILED, schema.INVALID) else None
            start = datetime(2026, 11, 19, 8, tzinfo=UTC) + timedelta(minutes=13 * number)
            seen = {
                "pool_params_count": parameters,
                "pool_times_gap": times,
                "attempt": 2 if error else 1,
                "host": "gpu-node-07.cluster.example",
                "device": "NVIDIA H200",
                "git_commit": "0123456789abcdef0123456789abcdef01234567",
                "versions": '{"python": "3.11.2", "torch": "2.13.0", "ray": "2.60.0"}',
                "started_at": start,
                "finished_at": start + timedelta(minutes=39),
            }
            run.write_trial(row(planned, str(status), epochs, error) | seen)
            with run.trial(trial.id).open_log() as log:
                log.write("attempt 1\n")
        return run

    return make


class Page(html.parser.HTMLParser):
    """What a page has: its tags with their attributes, and its text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def all(self, attribute: str) -> list[str]:
        return [value for _, attrs in self.tags if (value := attrs.get(attribute))]


def report(run: RunFolder, *arguments: str) -> Page:
    assert main(["report", str(run.path), *arguments]) == 0
    return Page((run.path / "report.html").read_text(encoding="utf-8"))


def test_a_whole_sweep_is_one_small_page_that_fetches_nothing(build: Build) -> None:
    run = build()
    page = report(run)
    assert (run.path / "report.html").stat().st_size < 3e6
    hosts = "gpu-node-07.cluster.example (36 trials)"
    for said in ("36 of 36", "71.", "best baseline", "NVIDIA H200 (36 trials)", hosts, "torch 2.13.0"):
        assert said in page.text
    assert sum(tag == "figure" for tag, _ in page.tags) == 3 + 3 + 9
    logs = [link for link in page.all("href") if link.startswith("logs/")]
    assert len(logs) == 36
    assert all((run.path / unquote(link)).is_file() for link in logs)

    assert not {tag for tag, _ in page.tags} & {"script", "img", "iframe", "object", "base"}
    for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
        assert all(link.startswith(("#", "logs/", "data:,")) for link in page.all(name))
    text = "".join(f"{value}" for _, attrs in page.tags for value in attrs.values()) + page.text
    assert "http" not in text
    assert "@import" not in text
    assert all(link.startswith("#") for link in re.findall(r"url\(([^)]*)", text))
    ids = page.all("id")
    used = set(re.findall(r"url\(#([^)]*)\)", text)) | {link[1:] for link in page.all("xlink:href")}
    assert len(ids) == len(set(ids)), "no id stands twice"
    assert used
    assert used <= set(ids)

    drawn = " ".join(page.all("style"))
    assert "var(--c3)" in drawn
    assert "currentColor" in drawn
    assert not re.search(r"#[0-9a-f]{6}", drawn), "a colour that the dark theme cannot change"


def test_labels_and_errors_are_text(build: Build) -> None:
    hostile = Entry(pool.expand("gem", label=HOSTILE)[0])
    quotes = Entry(pool.expand("se", label=QUOTES)[0])
    run = build({("gem", "vgg16bn", 42): schema.FAILED}, grid_of((*ENTRIES[:2], hostile, quotes), epochs=6))
    page = report(run)
    assert not any(tag == "script" for tag, _ in page.tags)
    assert page.text.count(HOSTILE) >= 8, "in the table, the legends, the pictures, the list and the error"
    assert page.text.count(QUOTES) >= 7, "mathematics neither"
    assert f"RuntimeError: {HOSTILE}" in page.text
    assert "at line 3" not in page.text


def test_what_has_not_completed_is_named(build: Build) -> None:
    run = build(
        {
            ("gem", "resnet56", 42): schema.DIVERGED,
            ("gem", "vgg16bn", 42): schema.FAILED,
            **{("se", "mobilenetv2", seed): schema.INVALID for seed in SEEDS},
            ("gap", "vgg16bn", 456): 70,
            ("gap", "mobilenetv2", 456): None,
        },
    )
    page = report(run)
    assert page.all("class").count("error") == 4, "under those that failed or are invalid, and under no other"
    for said in (
        "29 of 36",
        *("1 failed", "1 diverged", "3 invalid", "1 under way", "1 waiting"),
        "Diverged, not in any mean: gem on resnet56-cifar100 (1).",
        "Invalid, not in any mean: se on mobilenetv2-fmnist (3).",
        "Missing, not in any mean: gap on vgg16bn-cifar10 (1); gap on mobilenetv2-fmnist (1).",
    ):
        assert said in page.text


def test_a_hidden_pair_that_nobody_has_asked_about_is_withheld(build: Build) -> None:
    grid = grid_of(ENTRIES, 3, (PAIRS[0], Pair("vgg16bn", "cifar10", hidden=True)), (1, 2))
    run = build({(entry.pool.name, "vgg16bn", seed): None for entry in ENTRIES for seed in (1, 2)}, grid)
    text = report(run).text
    assert "8 of 8" in text
    assert "Withheld until the final run (--final): vgg16bn-cifar10." in text


def test_a_sweep_that_has_just_begun(build: Build, tmp_path: Path) -> None:
    nothing = {(e.pool.name, p.arch, seed): None for e in ENTRIES for p in PAIRS for seed in SEEDS}
    assert "0 of 36" in report(build(nothing)).text
    assert "1 under way" in report(build(nothing | {("gem", "vgg16bn", 42): 1})).text
    empty = RunFolder(tmp_path / "empty")
    empty.create()
    assert "No trial has been asked for" in report(empty).text
    assert main(["curves", str(empty.path), "--output", str(tmp_path / "none")]) == 0


def test_one_seed_has_no_interval(build: Build) -> None:
    run = build(grid=grid_of(ENTRIES, 1, PAIRS[:1], (42,)))
    text = report(run).text
    assert "(1)" in text
    assert not re.search(r"\b(nan|NaN|None|NaT)\b", text)


def test_many_pools_differ_in_more_than_colour(build: Build) -> None:
    gems = [pool.expand("gem", {"p": p}, label=f"a long name of a pool, gem with p={p}")[0] for p in range(1, 15)]
    page = report(build(grid=grid_of((ENTRIES[0], *map(Entry, gems)), 3, PAIRS[:1], (1, 2))))
    keys = [style for style in page.all("style") if "stroke-width:2.2" in style]
    assert len(keys) == len(set(keys)) == 15
    assert all(f"…gem with p={p}" in page.text for p in range(1, 10)), "what tells them apart is not cut off"


def test_another_place_links_back_to_the_logs(build: Build, tmp_path: Path) -> None:
    run = build(grid=grid_of(epochs=2))
    target = tmp_path / "elsewhere" / "page.html"
    assert main(["report", str(run.path), "--output", str(target)]) == 0
    links = [link for link in Page(target.read_text(encoding="utf-8")).all("href") if link.endswith(".log")]
    assert len(links) == 36
    assert all((target.parent / unquote(link)).is_file() for link in links)


def test_mixed_recipes_are_refused_as_in_the_table(build: Build, capsys: pytest.CaptureFixture[str]) -> None:
    run = build(grid=grid_of(epochs=2))
    other = next(iter(grid_of(epochs=3)))
    run.write_trial(row(other, schema.COMPLETED, history(other, 3), None))
    assert main(["report", str(run.path)]) == 2
    assert "--allow-mixed" in capsys.readouterr().err
    assert "gap [epochs=3]" in report(run, "--allow-mixed").text


@pytest.mark.parametrize("form", ["png", pytest.param("svg", marks=pytest.mark.soak)])
def test_the_pictures_as_files(build: Build, tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = build(grid=grid_of((*ENTRIES[:3], Entry(pool.expand("se", label=QUOTES)[0])), epochs=5))
    target = tmp_path / "pictures"
    assert main(["curves", str(run.path), "--output", str(target), "--format", form]) == 0
    assert "15 pictures" in capsys.readouterr().out
    files = {path.name: path for path in target.iterdir()}
    assert len(files) == 15
    assert {f"curves-resnet56-cifar100.{form}", f"cost-vgg16bn-cifar10-train_s.{form}"} <= set(files)
    for path in files.values() if form == "png" else ():
        with Image.open(path) as image:
            assert np.asarray(image.convert("L")).std() > 5, "not blank"


def test_a_place_that_cannot_be_written_is_named(
    build: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = build(grid=grid_of(epochs=1))
    (tmp_path / "file").touch()
    for command in ("report", "curves"):
        assert main([command, str(run.path), "--output", str(tmp_path / "file" / "x")]) == 2
        assert "cannot be written" in capsys.readouterr().err


def test_the_table_never_imports_matplotlib() -> None:
    code = "import sys, results.__main__; assert not {'matplotlib', 'jinja2'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


# In a browser


@pytest.mark.soak
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)])
def test_a_browser_shows_it_without_complaint(build: Build, tmp_path: Path, width: int, dark: bool) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on the PATH (apt-get install chromium)")
    run = build({("gem", "resnet56", 42): schema.DIVERGED}, grid_of(epochs=50))
    report(run)
    picture = tmp_path / "page.png"
    arguments = [
        *(chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"),
        *("--enable-logging=stderr", "--v=0", f"--user-data-dir={tmp_path / 'profile'}"),
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        *(f"--screenshot={picture}", f"--window-size={width},2400", (run.path / "report.html").as_uri()),
    ]
    done: Any = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    assert "ERR_" not in done.stderr
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("L"))
    assert len(np.unique(pixels)) > 50, "not blank"
    assert (pixels.mean() < 90) == dark
