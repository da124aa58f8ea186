"""Measurements one after the other in one process; one that breaks the GPU for it costs itself, and a new process.

python -m benchmarks.rental.jobs MODULE SETTINGS
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.rental.settings import Rows, Settings

Job = tuple[str, Callable[[Rows], None]]  # what it is called, and what adds its rows


def main() -> None:
    """Run the jobs of a stage in a process that is started anew after a job that ended it."""
    module, settings = sys.argv[1:]
    with tempfile.NamedTemporaryFile("w+", encoding="utf-8") as begun:
        command = [sys.executable, "-u", "-m", module, settings, begun.name]
        last = -1
        while (code := subprocess.run(command, check=False).returncode) != 0:
            print(f"job {_number(Path(begun.name))} ended its process with exit code {code}", flush=True)
            if _number(Path(begun.name)) == last:  # nothing has begun since
                raise SystemExit(code)
            last = _number(Path(begun.name))


def run(name: str, jobs: Callable[[Settings], Sequence[Job]]) -> None:
    """Run the jobs of a stage, as its module's main, from the one after that which began last.

    Args:
        name: of the file with its rows, which the first job begins anew.
        jobs: in order of worth; the same whenever it is asked.
    """
    settings, begun = Settings.from_json(sys.argv[1]), Path(sys.argv[2])
    first = _number(begun) + 1
    rows = Rows(settings.result(name), go_on=first > 0)
    for number, (what, work) in enumerate(jobs(settings)[first:], first):
        if settings.left < 0:
            print(f"no time is left for {what} and what follows")
            return
        begun.write_text(str(number), encoding="utf-8")
        with noted(rows, what=what):
            work(rows)


@contextlib.contextmanager
def noted(rows: Rows, **told: Any) -> Iterator[None]:
    """Have what the block raises become a row that says so; it is raised only if this process has lost its GPU."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        rows.add({**told, "failed": f"{type(error).__name__}: {error}"[:300]})
        raise_if_lost()


def _number(begun: Path) -> int:
    """Return the number of the job that began last; -1 if none did."""
    return int(begun.read_text(encoding="utf-8") or -1)


def raise_if_lost() -> None:
    """After an illegal access no call of this process answers."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
