"""Stage `train`: starts the trainer, unless one is at work, and stays with it; what it has packed is copied to OUT."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.rental import evidence
from benchmarks.rental.evidence import EVIDENCE
from benchmarks.rental.settings import Settings, from_argv, read_json, write, write_json
from search_spaces.kernels import SWITCH

LOOK_EVERY_S = 1.0
MOST_FILES = 8  # in OUT
STARTS = 3  # of the trainer, which nothing should end


def main() -> None:
    settings = from_argv()
    place = Path(settings.run).parent
    place.mkdir(parents=True, exist_ok=True)
    settings = remembered(settings, place)
    child = start(settings, place) if not at_work(place) else None
    starts = 1
    said = place / "train.txt"
    shown = 0
    while True:
        going = child.poll() is None if child else at_work(place)
        copy(place, Path(settings.out))
        text = said.read_text(encoding="utf-8", errors="replace") if said.exists() else ""
        print(text[shown:], end="", flush=True)
        shown = len(text)
        if not going and child and child.returncode and starts < STARTS:
            print(f"the trainer died with exit code {child.returncode}; it is started again", flush=True)
            child, starts, going = start(settings, place), starts + 1, True
        if not going or settings.left < LOOK_EVERY_S:
            break
        time.sleep(LOOK_EVERY_S)
    print("the trainer goes on" if going else "the trainer has ended")
    if child and child.poll():
        raise SystemExit(child.returncode)


def remembered(settings: Settings, place: Path) -> Settings:
    """Return the settings with the end that the first command has set; keep what it has measured and switched off."""
    mine = {"until": settings.train_until, "off": os.environ.get(SWITCH, "")}
    held = read_json(place / "told.json", mine)
    told = held if held["until"] > time.time() else mine
    write_json(place / "told.json", told)
    os.environ[SWITCH] = told["off"]
    if settings.result("packs.json").exists():
        write(place / "packs.json", settings.result("packs.json").read_bytes())
    return dataclasses.replace(settings, train_until=told["until"])


def start(settings: Settings, place: Path) -> subprocess.Popen[bytes]:
    with (place / "train.txt").open("ab") as file:
        command = [sys.executable, "-u", "-m", "benchmarks.rental.trainer", settings.to_json()]
        quiet = subprocess.DEVNULL
        return subprocess.Popen(command, stdin=quiet, stdout=file, stderr=file, start_new_session=True)


def at_work(place: Path) -> bool:
    """Whether a trainer holds its lock, which it does for as long as it lives."""
    with (place / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def copy(place: Path, out: Path) -> None:
    """Copy what has been packed anew: the evidence, and the checkpoints if there is room for all of their parts."""
    with evidence.undisturbed(place):
        parts = sorted(place.glob(evidence.PART))
        others = {
            path.name for path in out.iterdir() if not path.match(evidence.PART) and not path.name.startswith(".")
        }
        if len(others | {EVIDENCE}) + len(parts) > MOST_FILES:
            parts = []
        for old in set(out.glob(evidence.PART)) - {out / part.name for part in parts}:
            old.unlink()
        for file in [place / EVIDENCE, *parts]:
            target = out / file.name
            if file.exists() and not (target.exists() and target.stat().st_mtime >= file.stat().st_mtime):
                write(target, file.read_bytes())


if __name__ == "__main__":
    main()
