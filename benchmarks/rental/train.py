"""Stage `train`: starts the trainer, unless one is at work, and stays with it; what it has packed is copied to OUT."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.rental import evidence, plan
from benchmarks.rental.evidence import EVIDENCE
from benchmarks.rental.settings import Settings, from_argv, read_json, write, write_json
from search_spaces.kernels import SWITCH

LOOK_EVERY_S = 1.0
MOST_FILES = 8  # in OUT
MARK = "over.json"  # which the trainer writes at its end, and only if it comes to it
STARTS = 3  # of the trainer, which nothing should end


def main() -> None:
    settings = from_argv()
    place = Path(settings.run).parent
    place.mkdir(parents=True, exist_ok=True)
    settings = remembered(settings, place)
    say_what_is_missing(settings)
    child = None if at_work(place) else start(settings, place)
    starts = 1
    said = place / "train.txt"
    shown = 0
    while True:
        going = at_work(place) or (child is not None and child.poll() is None)
        over = read_json(place / MARK)
        copy(place, Path(settings.out))
        text = said.read_text(encoding="utf-8", errors="replace") if said.exists() else ""
        print(text[shown:], end="", flush=True)
        shown = len(text)
        if not going and over is None and starts < STARTS and time.time() < settings.train_until:
            print("the trainer died; it is started again", flush=True)
            child, starts, going = start(settings, place), starts + 1, True
        if not going or settings.left < LOOK_EVERY_S:
            break
        time.sleep(LOOK_EVERY_S)
    if going:
        print("the trainer goes on")
    elif over is None:
        raise SystemExit("the trainer died")
    elif not over["trained"]:
        raise SystemExit("the trainer has ended, and nothing was ever trained")
    else:
        print("the trainer has ended")


def say_what_is_missing(settings: Settings) -> None:
    """Say which images are not there: those of a later piece, or all, if a step before was forgotten."""
    if missing := plan.missing(settings, plan.wanted(settings, plan.grid(settings), {})):
        print(
            f"there are no images of {', '.join(missing)}, or not all, in {settings.data}: cut them with `python -m "
            f"benchmarks.rental pieces DATA_DIR {Path(settings.data).parent}`, and run the stage `join` before `train`",
            flush=True,
        )


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
    (place / MARK).unlink(missing_ok=True)
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
        ours = (EVIDENCE, *(part.name for part in out.glob(evidence.PART)))
        others = [path for path in out.iterdir() if path.name not in ours and not path.name.startswith(".")]
        coming = [*others, *place.glob(EVIDENCE), *parts]
        if len(coming) > MOST_FILES or sum(path.stat().st_size for path in coming) > evidence.COMES_BACK:
            parts = []
        for old in set(out.glob(evidence.PART)) - {out / part.name for part in parts}:
            old.unlink()
        for file in [place / EVIDENCE, *parts]:
            target = out / file.name
            if file.exists() and not (target.exists() and target.stat().st_mtime >= file.stat().st_mtime):
                write(target, file.read_bytes())


if __name__ == "__main__":
    main()
