r"""A rented GPU for fifteen minutes: what it can do, what is right on it, how fast the program is; then it trains.

    python -m benchmarks.rental pieces DATA_DIR .rental      before: the images in pieces that fit through a transfer
    python -m benchmarks.rental commit .rental               right before sending: the commit, for a machine without git
    python -m benchmarks.rental STAGE... [options]           there
    python -m benchmarks.rental unpack OUT .rental/run       after: evidence, or checkpoints for the next rental

Stages, each a process with a time limit of its own; none stops those that follow, and what each finds is in OUT at
once: `env`, `join` (pieces of the images that have come), `precompile`, `checks`, `ceilings`, `kernels`, `packs`,
`profile`, `train`. Neither Ray nor pydantic nor a network is needed. `--rehearse` runs all of it on a CPU, small,
in `.rental/rehearsal`.

`train` trains the published table in order of worth, in a process that outlives the command: `--stay` says how long
the command stays with it, and packs its evidence anew every 30 seconds. A pack is started only if it ends in time, or
if its checkpoints can travel. The same command goes on where another left off.

On a machine that takes 64 MiB with a command and is given back 30 s after one, three commands in a row, as many as
there are pieces. The first carries `.rental/0` (limit 250 s), the others `.rental/1` (limit 60 s) and `.rental/2` with
the longest limit that there is; training has to end before the machine's time is up (900 s, of which 90 to start):

    export CUDA_DEVICE_MAX_CONNECTIONS=32 TRITON_CACHE_DIR=/tmp/triton POOLSWEEP_CACHE=/tmp/poolsweep
    rm -rf /tmp/p; cp -r . /tmp/p; cd /tmp/p
    python3 -m benchmarks.rental env join precompile checks ceilings kernels packs profile train \
        --seconds 200 --train-seconds 730 --stay 0 --out $OUT; exit 0

    export CUDA_DEVICE_MAX_CONNECTIONS=32 TRITON_CACHE_DIR=/tmp/triton POOLSWEEP_CACHE=/tmp/poolsweep
    cp -r .rental/1 /tmp/p/.rental; cd /tmp/p
    python3 -m benchmarks.rental join train --stay 3 --out $OUT; exit 0

and the last as the second, with `.rental/2` and without `--stay`. The code runs from a copy, since every transfer lays
the tree anew under what goes on training. What a rental leaves unfinished the next one takes along as `.rental/run`, in
a command of its own before the others if a piece leaves it no room, and with `--table packs.json` `train` needs no
stage before it but `precompile`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.rental import pieces
from benchmarks.rental.settings import Settings, read_json
from search_spaces.kernels import SWITCH

FOREVER = 1e9
LIMITS = {  # {stage: (seconds that it may take, that it needs at the least)}, in order
    "env": (45, 5),
    "join": (20, 2),
    "precompile": (60, 15),
    "checks": (60, 25),
    "ceilings": (20, 8),
    "kernels": (40, 20),
    "packs": (120, 50),
    "profile": (25, 10),
    "train": (FOREVER, 1),
}
COMMANDS = {"pieces": pieces.cut, "commit": pieces.note, "unpack": pieces.unpack}  # here, before and after
PACKAGE = "benchmarks.rental"  # of the modules of the stages
OF_JOBS = ("kernels", "packs")  # whose measurements may each end their process
ON_A_CPU = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
UNCHECKED = str(Path(__file__).with_name("unchecked"))
SLOWER = 5  # a CPU that others use as well
LEAVES_S = 30.0  # to `train`, which leaves by itself
GRACE_S = 3.0  # from SIGTERM to SIGKILL
TAIL = 15  # lines of a stage's output that are said again if it failed


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rental", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("stages", nargs="+", metavar="STAGE", help=f"{', '.join(LIMITS)}; or {', '.join(COMMANDS)}")
    parser.add_argument("--out", default=os.environ.get("OUT", "out"), help="the folder of the results")
    parser.add_argument("--pieces", help="the folder with the pieces 0, 1, 2 of the images; otherwise .rental")
    parser.add_argument("--seconds", type=float, default=150.0, help="for all stages, `train` apart")
    parser.add_argument("--train-seconds", type=float, default=540.0, help="from now until training has to end")
    parser.add_argument("--stay", type=float, default=FOREVER, help="seconds with `train`, at most until its end")
    parser.add_argument("--table", help="packs.json of another day")
    parser.add_argument("--pack", action="append", default=[], help='for `train`: "arch dataset pool,pool seed,seed"')
    parser.add_argument("--rehearse", action="store_true", help="all of it on a CPU, small")
    args = parser.parse_args(argv)
    if command := COMMANDS.get(args.stages[0]):
        for line in command(*map(Path, args.stages[1:])):
            print(line)
        return 0
    if unknown := set(args.stages) - set(LIMITS):
        parser.error(f"there is no stage {', '.join(sorted(unknown))}; there are {', '.join(LIMITS)}")
    now, here = time.time(), Path(args.pieces or (".rental/rehearsal" if args.rehearse else ".rental")).resolve()
    settings = Settings(
        out=str(Path(args.out).resolve()),
        data=str(here / "data"),
        run=str(here / "run"),
        deadline=now + args.seconds * (SLOWER if args.rehearse else 1),
        train_until=now + args.train_seconds,
        table=args.table,
        packs=tuple(args.pack),
        rehearse=args.rehearse,
    )
    return Stages(settings, args.stay).run([stage for stage in LIMITS if stage in args.stages])


class Stages:
    """Runs stages one after the other, and writes what they print into `log.txt`."""

    def __init__(self, settings: Settings, stay: float):
        self._settings, self._stay = settings, stay
        self._began = time.time()
        self._child: subprocess.Popen[str] | None = None
        self._ended = False
        settings.result("log.txt").parent.mkdir(parents=True, exist_ok=True)
        self._log = settings.result("log.txt").open("a", encoding="utf-8", errors="replace")

    def say(self, line: str) -> None:
        for file in (self._log, sys.stdout):
            print(line, file=file, flush=True)

    def run(self, stages: Sequence[str]) -> int:
        """Return how many failed."""
        signal.signal(signal.SIGTERM, self._end)
        codes = {}
        for index, stage in enumerate(stages):
            if self._ended:
                break
            rest = sum(LIMITS[later][1] for later in stages[index + 1 :])
            own, least = LIMITS[stage]
            own *= SLOWER if self._settings.rehearse else 1
            seconds = self._stay if stage == "train" else min(own, self._settings.left - rest)
            if stage != "train" and seconds < least / 5:
                self.say(f"[{time.time() - self._began:6.1f} s] {stage}: no time is left for it")
                continue
            codes[stage] = self._stage(stage, seconds)
        self.say(f"[{time.time() - self._began:6.1f} s] exit codes: {codes}")
        return sum(code != 0 for code in codes.values())

    def _stage(self, stage: str, seconds: float) -> int:
        started = time.time()
        limit = f"{seconds:.0f} s at most" if seconds < FOREVER else "to its end"
        self.say(f"[{started - self._began:6.1f} s] {stage}, {limit}")
        told = dataclasses.replace(self._settings, deadline=started + seconds)
        module = f"{PACKAGE}.{stage}"
        command = ["benchmarks.rental.jobs", module] if stage in OF_JOBS else [module]
        self._child = subprocess.Popen(
            [sys.executable, "-u", "-m", *command, told.to_json()],
            env=self._environment(stage),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        tail = deque[str](maxlen=TAIL)
        killer = _after(seconds + (LEAVES_S if stage == "train" else 0), self._child)
        for line in self._child.stdout or ():
            tail.append(line.rstrip("\n"))
            self.say(f"  {tail[-1]}")
        code = self._child.wait()
        killer.cancel()
        self.say(f"[{time.time() - self._began:6.1f} s] {stage}: exit code {code} after {time.time() - started:.1f} s")
        if code:
            self.say("\n".join(f"  ! {line}" for line in tail))
        return code

    def _environment(self, stage: str) -> dict[str, str]:
        """Return a stage's variables: what `checks` has found wrong is off, but for `checks`, which looks anew."""
        off = (read_json(self._settings.result("checks.json")) or {}).get("off", []) if stage != "checks" else []
        switched = {SWITCH: ",".join(filter(None, (os.environ.get(SWITCH), *off)))}
        return os.environ | without_pydantic() | switched | (ON_A_CPU if self._settings.rehearse else {})

    def _end(self, *_: Any) -> None:
        """Have the stage end in which SIGTERM finds this process, and start no other."""
        self._ended = True
        if self._child:
            _after(0, self._child)


def without_pydantic() -> dict[str, str]:
    """Return what has processes find a stand-in for pydantic, where there is none."""
    try:
        import pydantic  # noqa: F401
    except ImportError:
        return {"PYTHONPATH": os.pathsep.join(filter(None, (UNCHECKED, os.environ.get("PYTHONPATH"))))}
    return {}


def _after(seconds: float, child: subprocess.Popen[str]) -> threading.Timer:
    """Have a stage and all that it started ended after so many seconds: by SIGTERM, then by SIGKILL."""

    def end() -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(GRACE_S)

    timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), end)
    timer.daemon = True
    timer.start()
    return timer


if __name__ == "__main__":
    sys.exit(main())
