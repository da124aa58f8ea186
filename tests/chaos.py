"""A sweep under a monkey that kills something every few seconds, run again until it is done, and then audited.

    python -m tests.chaos [--seed N] [--kills N] [--minutes M] [--trials N] [--keep DIR]

What is killed is drawn: kill -9 of the driver, of a worker, of the raylet, of Ray's control store (gcs_server), of all
of them at once; SIGTERM, SIGINT or SIGUSR1 to the driver. A folder that is done before so many kills were made is
followed by another. When the minutes are over nothing is killed any more, and the last sweep may end.

It holds if the audit (`python -m results verify`) finds nothing, every number is that of an undisturbed run, no row of
a trial that has completed was ever written again, and no process is left. Linux only: it looks into /proc.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from orchestrator import cli
from orchestrator.record import Job
from orchestrator.worker import run_pack
from results.store import schema, verify
from results.store.folder import RunFolder
from search_spaces import space as spaces
from tests.kills import identity, numbers
from trainer import data

ROOT = Path(__file__).resolve().parents[1]
SPACE = """
name: chaos
recipe: {{epochs: 3, batch_size: 32, lr: 0.02, train_samples: 320, test_samples: 100}}
architectures: [resnet20, mobilenetv2_s32]
datasets: [digits]
pools: [{{name: gap, role: baseline}}, gem, avg_max, stochastic, gated]
seeds: {seeds}
checkpoint_every: 1
max_failures: 20
"""
A_SEED = 10  # trials
LOOK_EVERY_S = 0.1
PATIENCE_S = 240.0  # without any trial that ends: something hangs
GONE_S = 120.0  # Ray's agents look for a control store that was killed for 60 s before they end
REFUSALS = 5  # one after another


@dataclass(frozen=True, slots=True)
class Process:
    pid: int
    session: int
    command: str  # as /proc has it, its arguments parted by spaces


def processes(marker: str, sessions: set[int]) -> list[Process]:
    """Those of our sweeps: by their session, which outlives its leader, or by a variable that they have inherited."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):  # it has ended, or is somebody else's
            state, _, _, session, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
            if state in "ZX":
                continue
            if int(session) in sessions or marker.encode() in (folder / "environ").read_bytes():
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found.append(Process(int(folder.name), int(session), command))
    return found


# {what is killed: the signal, what the commands begin with; None for the driver's}
SHOTS: Mapping[str, tuple[int, str | None]] = {
    "kill -9 driver": (signal.SIGKILL, None),
    "kill -9 worker": (signal.SIGKILL, "ray::(?!.*Agent)"),
    "kill -9 raylet": (signal.SIGKILL, r"\S*/raylet\b"),
    "kill -9 gcs_server": (signal.SIGKILL, r"\S*/gcs_server\b"),
    "kill -9 all of it": (signal.SIGKILL, ""),
    "SIGTERM": (signal.SIGTERM, None),
    "SIGINT": (signal.SIGINT, None),
    "SIGUSR1": (signal.SIGUSR1, None),
}


class Defect(Exception):  # noqa: N818 - it is what is looked for
    """Something that must hold and does not."""


class Sweep:
    """A space on a run folder, started again and again; within the block, and no process of it is left after it."""

    def __init__(self, space: Path, folder: Path, temporary: str):
        self.folder = folder
        self.trials = len(spaces.load(str(space)).grid)
        self.said = folder.with_suffix(".log")
        self._command = [sys.executable, "run_sweep.py", "--space", str(space), "--out", str(folder)]
        self._marker = f"POOLSWEEP_CHAOS={uuid.uuid4().hex}"
        name, _, value = self._marker.partition("=")
        # Ray's own files, and scratch, so that what killed processes leave goes with the rest.
        own = {name: value, "RAY_TMPDIR": temporary, "TMPDIR": temporary, "CUDA_VISIBLE_DEVICES": ""}
        self._environment = os.environ | own
        self._sessions: set[int] = set()
        self._rows: dict[str, list[int | str]] = {}
        self.driver: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Sweep:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes():
            _signal(process.pid, signal.SIGKILL)
        if self.driver:
            self.driver.wait()

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        with self.said.open("ab") as said:
            self.driver = subprocess.Popen(
                [*self._command, *options],
                cwd=ROOT,
                env=self._environment,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        self._sessions.add(self.driver.pid)
        return self.driver

    def processes(self) -> list[Process]:
        return processes(self._marker, self._sessions)

    def look(self) -> int:
        """How many trials were trained to their ends.

        Raises:
            Defect: a row of one that had completed was written again, or is gone.
        """
        run = RunFolder(self.folder)
        for trial_id, before in self._rows.items():
            path = self.folder / "trials" / f"{trial_id}.parquet"
            try:
                now = path.stat()
            except FileNotFoundError:
                raise Defect(f"{path.name} had completed, and is gone") from None
            if [now.st_ino, now.st_mtime_ns] != before[:2]:
                raise Defect(f"{path.name} had completed, and was written again")
        for path in (self.folder / "trials").glob("[!.]*.parquet"):
            if path.stem not in self._rows and run.status(path.stem) in schema.TRAINED:
                self._rows[path.stem] = identity(run, path.stem)
        return len(self._rows)

    def is_training(self, since: float) -> bool:
        """Whether a trial has left a checkpoint since then, by the clock of the file system."""
        for path in (self.folder / "checkpoints").glob("[!.]*.pt"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime >= since:
                    return True
        return False

    def last_words(self) -> str:
        return "\n".join(self.said.read_text(errors="replace").splitlines()[-15:])

    def await_none(self) -> None:
        """Waits for all of its processes to end.

        Raises:
            Defect: some do not.
        """
        deadline = time.monotonic() + GONE_S
        while left := self.processes():
            if time.monotonic() > deadline:
                raise Defect("left behind: " + "; ".join(f"{one.pid} {one.command[:80]}" for one in left))
            time.sleep(LOOK_EVERY_S)


class Monkey:
    """What is killed when, drawn from a seed.

    Attributes:
        kills: {what: how often}.
        wanted: how many kills are to be made.
        until: when to stop, by the monotonic clock.
    """

    def __init__(self, seed: int, wanted: int, seconds: float):
        self._draw = random.Random(seed)  # noqa: S311
        self._began = time.monotonic()
        self.wanted = wanted
        self.until = self._began + seconds
        self.kills: Counter[str] = Counter()
        self.starts = 0
        self.refusals = 0

    @property
    def is_done(self) -> bool:
        return self.kills.total() >= self.wanted or time.monotonic() >= self.until

    def torment(self, sweep: Sweep, say: Callable[[str], None]) -> None:
        """Runs a sweep until every trial was trained to its end.

        Raises:
            Defect: it does not come to an end, or what it had done is done again.
        """
        refused = 0
        code = None
        while code not in (cli.OK, cli.INCOMPLETE) or sweep.look() < sweep.trials:
            driver = sweep.start(*(["--retry-failed"] if code == cli.INCOMPLETE else []))
            self.starts += 1
            code = self._watch(sweep, driver, say)
            refused = refused + 1 if code == cli.REFUSED else 0
            self.refusals += code == cli.REFUSED
            if refused == REFUSALS:
                raise Defect(f"refused {REFUSALS} times, one after another:\n{sweep.last_words()}")

    def _watch(self, sweep: Sweep, driver: subprocess.Popen[bytes], say: Callable[[str], None]) -> int:
        """Kills now and then until the driver has ended; its exit code."""
        # Half a minute passes before trials run: mostly wait for them, else nothing would ever get done.
        early = self._draw.random() < 0.25
        started = time.time()
        due = time.monotonic() + self._draw.uniform(0, 15) if early else None
        before = done = sweep.look()
        changed = time.monotonic()
        while (code := driver.poll()) is None:
            time.sleep(LOOK_EVERY_S)
            now = time.monotonic()
            if (count := sweep.look()) > done:
                done, changed = count, now
            if now - changed > PATIENCE_S:
                raise Defect(f"no trial ended for {PATIENCE_S:.0f} s:\n{sweep.last_words()}")
            if due is None and (done > before or sweep.is_training(started)):
                due = now + self._draw.uniform(0.5, 6)
            if due is not None and now >= due and not self.is_done and (what := self._kill(sweep, driver.pid)):
                self.kills[what] += 1
                say(f"{now - self._began:6.1f} s  {what:<20} {count:>3} trials done, {self.kills.total()} kills")
                due = now + self._draw.uniform(1, 8)
        sweep.look()
        return code

    def _kill(self, sweep: Sweep, driver: int) -> str | None:
        """What was killed; None if there was none of it."""
        what = self._draw.choice(list(SHOTS))
        number, begins = SHOTS[what]
        targets = [driver]
        if begins is not None:
            targets = [one.pid for one in sweep.processes() if re.match(begins, one.command)]
        if what == "kill -9 worker" and targets:
            targets = [self._draw.choice(targets)]
        hit = [_signal(pid, number) for pid in targets]
        return what if any(hit) else None


def _signal(pid: int, number: int) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def undisturbed(space_file: Path, folder: Path) -> list[str]:
    """The numbers that every trial comes to, trained one after another in this process, with a worker's one thread."""
    space = spaces.load(str(space_file))
    run = RunFolder(folder)
    run.create()
    run.write_grid(space.grid)
    digits = data.load("digits", Path("unused"))
    for planned in space.grid:
        run_pack([planned], digits, Job(run.where, checkpoint_every=100))
    return numbers(run)


def check(sweep: Sweep, expected: Sequence[str]) -> str:
    """What the audit says of a sweep that is done.

    Raises:
        Defect: the run folder is not what an undisturbed sweep leaves.
    """
    sweep.await_none()
    run = RunFolder(sweep.folder)
    audit = verify.verify(run)
    if audit.findings or audit.unfinished or audit.twice:
        raise Defect("\n".join(map(str, [*audit.findings, audit])))
    if differing := set(numbers(run)) ^ set(expected):
        raise Defect(f"{len(differing)} rows are not those of an undisturbed run:\n" + "\n".join(sorted(differing)[:4]))
    return str(audit)


def chaos(seed: int, kills: int, seconds: float, trials: int, folder: Path, say: Callable[[str], None]) -> Monkey:
    """Sweeps under a monkey, until so many kills were made or the time is over, and at least one.

    Args:
        trials: of a sweep, rounded up to tens.
        folder: for the run folders and what the sweeps say.

    Raises:
        Defect: something does not hold; `folder` has all of it.
    """
    space = folder / "chaos.yaml"
    space.write_text(SPACE.format(seeds=list(range(-(-trials // A_SEED)))))
    say(f"an undisturbed run of {-(-trials // A_SEED) * A_SEED} trials ...")
    expected = undisturbed(space, folder / "undisturbed")
    monkey = Monkey(seed, kills, seconds)
    for number in range(kills + 1):
        # A path to a socket may have 107 characters, of which Ray needs 70.
        short = tempfile.TemporaryDirectory(prefix="chaos-", dir="/tmp", ignore_cleanup_errors=True)
        with short as temporary, Sweep(space, folder / f"run-{number}", temporary) as sweep:
            monkey.torment(sweep, say)
            say(f"run-{number}: {check(sweep, expected)}")
        if monkey.is_done:
            break
    return monkey


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=60.0, help="after which nothing is killed any more")
    parser.add_argument("--trials", type=int, default=60, help="of each sweep")
    parser.add_argument("--keep", metavar="DIR", type=Path, help="where the run folders stay; else they go")
    args = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a sweep must not inherit that it is ignored
    with contextlib.ExitStack() as stack:
        folder = args.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        try:
            monkey = chaos(args.seed, args.kills, 60 * args.minutes, args.trials, folder.resolve(), _say)
        except Defect as defect:
            print(f"DEFECT, at seed {args.seed}: {defect}")
            return 1
        table = Table("killed", "times")
        for what in SHOTS:
            table.add_row(what, str(monkey.kills[what]))
        table.add_row("in all", f"{monkey.kills.total()} in {(time.monotonic() - began) / 60:.0f} min")
        table.add_row("starts", f"{monkey.starts}, of which {monkey.refusals} refused")
        Console(width=80).print(table)
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
