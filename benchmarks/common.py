"""What every benchmark needs: its options, a table, a result beside its provenance, and a process of its own."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from search_spaces import machine

ARCHS = ("resnet56", "vgg16bn", "mobilenetv2")
Row = dict[str, Any]


def options(doc: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--output", metavar="FILE", type=Path, help="the result as JSON, with the machine and versions")
    return parser


def show(columns: Mapping[str, str], rows: Sequence[Row]) -> None:
    """Print a table of {head: what a row says there, as a format string}; nothing where the row lacks a value."""
    table = Table(*columns)
    for row in rows:
        table.add_row(*(_cell(form, row) for form in columns.values()))
    Console(width=120).print(table)


def _cell(form: str, row: Row) -> str:
    try:
        return form.format(**row)
    except (KeyError, TypeError):
        return ""


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return ours by theirs, round by round, so that they hold when the machine's speed drifts."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def in_a_process(code: str, *args: str, **environment: str) -> Any:
    """Run Python code in a process of its own; return what its last line is as JSON."""
    command = [sys.executable, "-c", code, *args]
    done = subprocess.run(
        command, cwd=machine.ROOT, check=True, stdout=subprocess.PIPE, encoding="utf-8", env=os.environ | environment
    )
    return json.loads(done.stdout.splitlines()[-1])


def save(args: argparse.Namespace, benchmark: str, results: Any) -> None:
    """Write a result beside its provenance, if the command was given a file."""
    if args.output is None:
        return
    record = {
        "benchmark": benchmark,
        "arguments": {name: value for name, value in vars(args).items() if name != "output"},
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": machine.commit(),
        "machine": _hardware(),
        "results": results,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _hardware() -> dict[str, Any]:
    import torch

    cpus = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.*)", cpus.read_text(encoding="utf-8")) if cpus.exists() else None
    return {
        "cpu": found[1] if found else platform.processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("torch", "torchvision", "numpy")},
    }
