"""The published leaderboard, measured, in pieces of a bounded time.

    python -m benchmarks.reproduce DATA_DIR RUN [--time-budget 540] [--wheels DIR] [--pack FILE] [of run_sweep.py ...]

Runs `pools.yaml`, hidden pairs included, seed 42 of every pool and pair first; leaves in good order when the time is
up, and goes on when it is called again. After each piece it packs the evidence (rows, epochs, logs; no weights and no
checkpoints) into one file, and prints the table beside the published one. On another machine it goes on from that file:
trials that have ended stand, others begin anew. Exit codes are run_sweep.py's: 130 as long as there is more to do.

For a machine that has torch and nothing of Ray, and reaches nothing: `benchmarks.kit` brings the wheels and the images.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.kit import ROOT, dependencies
from search_spaces.errors import RequestError

PACKED_MIB = 16.0  # what may be brought back as one file
LEFT_OUT = ("checkpoints", "weights")
REFUSED, INTERRUPTED = 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reproduce", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data_dir", metavar="DATA_DIR", type=Path, help="where CIFAR-100 and Fashion-MNIST are")
    parser.add_argument("run", metavar="RUN", type=Path, help="the run folder")
    parser.add_argument("--space", default="pools.yaml")
    parser.add_argument("--time-budget", metavar="SECONDS", type=float, default=540.0)
    parser.add_argument("--wheels", metavar="DIR", type=Path, help="packages that this machine lacks")
    parser.add_argument("--pack", metavar="FILE", type=Path, help="the evidence (default: RUN.tar.gz)")
    args, options = parser.parse_known_args(argv)
    packed = args.pack or args.run.with_name(f"{args.run.name}.tar.gz")
    try:
        provide(args.wheels)
    except RequestError as error:
        print(*(f"error: {problem}" for problem in error.problems), sep="\n", file=sys.stderr)
        return REFUSED
    if packed.exists() and not args.run.exists():
        unpack(packed, args.run)
    sweep = ["run_sweep.py", "--space", args.space, "--data-dir", str(args.data_dir.resolve()), "--final"]
    piece = ["--out", str(args.run.resolve()), "--time-budget", str(args.time_budget)]
    code = subprocess.run([sys.executable, *sweep, *piece, *options], cwd=ROOT, check=False).returncode
    if code == REFUSED:
        return code
    size = pack(args.run, packed)
    if code == INTERRUPTED:
        subprocess.run([sys.executable, "-m", "results", "leaderboard", str(args.run.resolve())], cwd=ROOT, check=False)
    subprocess.run([sys.executable, "-m", "results", "reproduce", str(args.run.resolve())], cwd=ROOT, check=False)
    print(f"packed into {packed}: {size:.1f} MiB")
    if size > PACKED_MIB:
        smaller = "`python -m results compact` makes it smaller"
        print(f"warning: that is more than {PACKED_MIB:g} MiB; {smaller}", file=sys.stderr)
    if code == INTERRUPTED:
        print("there is more to do: run the same command again")
    return code


def provide(wheels: Path | None) -> None:
    """Makes what is missing here importable, in this process and in those that it starts, from a folder of wheels.

    They are unpacked beside it, into `site`: the machine's own Python stays as it is.

    Raises:
        RequestError: something is missing, and is not among the wheels.
    """
    site = wheels.resolve().with_name("site") if wheels else None
    if site:
        sys.path.insert(0, str(site))
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    if missing() and wheels and site:
        into = ["--no-index", "--no-deps", "--no-compile", "--upgrade", "--target", str(site)]
        brought = sorted(map(str, wheels.glob("*.whl")))
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *into, *brought], check=True)
    if names := missing():
        where = f"and is not in {wheels}" if wheels else "--wheels DIR brings it"
        raise RequestError.of(f"this machine lacks {', '.join(names)}; {where} (`python -m benchmarks.kit`)")


def missing() -> list[str]:
    """What this project imports and this Python has not, or not as new as it must be."""
    found = []
    for need in dependencies():
        try:
            is_there = need.specifier.contains(importlib.metadata.version(need.name), prereleases=True)
        except importlib.metadata.PackageNotFoundError:
            is_there = False
        if not is_there:
            found.append(str(need))
    return found


def pack(run: Path, file: Path) -> float:
    """Packs a run folder without what only goes on with it; the size in MiB."""

    def kept(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        parts = Path(entry.name).parts
        is_temporary = parts[-1].startswith(".")
        return None if is_temporary or (len(parts) > 1 and parts[1] in LEFT_OUT) else entry

    with tarfile.open(file, "w:gz") as archive:
        archive.add(run, arcname=run.name, filter=kept)
    return file.stat().st_size / 2**20


def unpack(file: Path, run: Path) -> None:
    """A run folder as it was packed, whatever it was called there."""

    def moved(entry: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
        inner = Path(*Path(entry.name).parts[1:])
        return tarfile.data_filter(entry.replace(name=str(inner)), folder)

    with tarfile.open(file) as archive:
        archive.extractall(run, filter=moved)  # noqa: S202 - through tarfile's own filter for data


if __name__ == "__main__":
    sys.exit(main())
