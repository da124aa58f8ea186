"""What a person sees while a sweep runs."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from orchestrator import progress
from orchestrator.progress import Progress
from search_spaces import pool
from search_spaces.grid import Entry, Grid, Pair
from search_spaces.recipe import Recipe

GRID = Grid("g", (Entry(pool.expand("gap")[0]),), (Pair("resnet20", "digits"),), (1, 2), Recipe(epochs=100))
TRIALS = list(GRID)


def epoch(number: int) -> dict[str, float]:
    return {"epoch": number, "test_acc": 12.345, "epoch_s": 6.0, "images_per_s": 1234.5}


def ended(status: str = "completed", error: str | None = None) -> dict[str, object]:
    return {"status": status, "best_test_acc": 70.0, "train_s": 600.0, "error": error}


def make(terminal: bool = False) -> tuple[Progress, io.StringIO]:
    sink = io.StringIO()
    return Progress(TRIALS, 3, Console(file=sink, force_terminal=terminal, width=200)), sink


def test_one_plain_line_for_each_trial_that_ends() -> None:
    shown, sink = make()
    with shown:
        shown.started(TRIALS[0])
        shown.ended(TRIALS[0], ended())
        shown.started(TRIALS[1])
        shown.ended(TRIALS[1], ended("failed", "ValueError: no\nmore"))
    assert sink.getvalue().splitlines() == [
        "[4/5] gap resnet20-digits seed 1: completed, best 70.00 %, 10 min; about 10 min left",
        "[5/5] gap resnet20-digits seed 2: failed, ValueError: no",
    ]


def test_what_runs_is_told_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PLAIN_EVERY_S", 0.0)
    shown, sink = make()
    shown.started(TRIALS[0])
    shown.reported(TRIALS[0], epoch(50))
    line = "gap resnet20-digits seed 1: epoch 50/100, 12.35 %, 1,234 images/s; about 15 min left"
    assert sink.getvalue().strip() == line


def test_a_trial_that_starts_again_does_not_count_twice() -> None:
    shown, _ = make()
    shown.started(TRIALS[0])
    shown.reported(TRIALS[0], epoch(50))
    shown.started(TRIALS[0])
    shown.reported(TRIALS[0], epoch(10))
    assert shown._left() == "; about 15 min left"


def test_a_terminal_shows_what_runs() -> None:
    shown, _ = make(terminal=True)
    shown.started(TRIALS[0])
    shown.reported(TRIALS[0], epoch(50))
    sink = io.StringIO()
    Console(file=sink, width=200).print(shown._render())
    assert sink.getvalue().splitlines() == [
        "[3/5] trials ended; about 15 min left",
        "  gap resnet20-digits seed 1: epoch 50/100, 12.35 %, 1,234 images/s",
    ]
