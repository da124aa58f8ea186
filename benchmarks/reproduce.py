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

from packaging.utils import canonicalize_name

from benchmarks.kit import dependencies
from search_spaces.errors import RequestError
from search_spaces.machine import ROOT

LEFT_OUT = (("checkpoints",), ("weights",))
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
        with tarfile.open(packed) as archive:
            archive.extractall(args.run, filter="data")
    sweep = ["run_sweep.py", "--space", args.space, "--data-dir", str(args.data_dir.resolve()), "--final"]
    piece = ["--out", str(args.run.resolve()), "--time-budget", str(args.time_budget)]
    code = subprocess.run([sys.executable, *sweep, *piece, *options], cwd=ROOT, check=False).returncode
    if code == REFUSED:
        return code
    pack(args.run, packed)
    # A sweep that has ended has shown its table.
    for command in ("leaderboard", "reproduce") if code == INTERRUPTED else ("reproduce",):
        subprocess.run([sys.executable, "-m", "results", command, str(args.run.resolve())], cwd=ROOT, check=False)
    print(
        f"packed into {packed}: {packed.stat().st_size / 2**20:.1f} MiB; `python -m results compact` makes it smaller"
    )
    if code == INTERRUPTED:
        print("there is more to do: run the same command again")
    return code


def provide(wheels: Path | None) -> None:
    """Make what is missing here importable, in this process and in those that it starts, from a folder of wheels.

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
    """Return what this project imports and this Python has not, or not as new as it must be."""
    there = {canonicalize_name(found.name): found.version for found in importlib.metadata.distributions()}
    needs = [(need, there.get(canonicalize_name(need.name))) for need in dependencies()]
    return [str(need) for need, has in needs if not has or not need.specifier.contains(has, prereleases=True)]


def pack(run: Path, file: Path) -> None:
    """Pack what is in a run folder, without what only goes on with it."""

    def kept(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        path = Path(entry.name)
        return None if path.name.startswith(".") or path.parts[:1] in LEFT_OUT else entry

    with tarfile.open(file, "w:gz") as archive:
        archive.add(run, arcname="", filter=kept)


if __name__ == "__main__":
    sys.exit(main())
