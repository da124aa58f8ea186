"""The published leaderboard, measured, in pieces of a bounded time.

    python -m benchmarks.reproduce DATA_DIR RUN [--time-budget 540] [--wheels DIR] [--pack FILE] [of run_sweep.py ...]

Runs `pools.yaml`, hidden pairs included, seed 42 of every pool and pair first; leaves in good order when the time is
up, and goes on when it is called again. After each piece it packs the evidence (rows, epochs, logs; no weights and no
checkpoints) into one file, and prints the table beside the published one. Exit codes are run_sweep.py's: 130 as long
as there is more to do.

For a machine that has torch and nothing of Ray, and reaches nothing: bring the wheels in a folder, those that are too
large for one transfer cut into NAME.whl.00, NAME.whl.01, ... (`split -d -b 60M`).
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

PACKED_MIB = 16.0  # what may be brought back as one file
NEEDED = {"ray": "ray[tune]", "pydantic": "pydantic", "rich": "rich", "statsmodels": "statsmodels", "jinja2": "jinja2"}
LEFT_OUT = ("checkpoints", "weights")
ROOT = Path(__file__).resolve().parents[1]
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
    if problem := provide(args.wheels):
        print(f"error: {problem}", file=sys.stderr)
        return 2
    sweep = ["run_sweep.py", "--space", args.space, "--data-dir", str(args.data_dir.resolve()), "--final"]
    piece = ["--out", str(args.run.resolve()), "--time-budget", str(args.time_budget)]
    code = subprocess.run([sys.executable, *sweep, *piece, *options], cwd=ROOT, check=False).returncode
    if code == REFUSED:
        return code
    packed = args.pack or args.run.with_name(f"{args.run.name}.tar.gz")
    size = pack(args.run, packed)
    if code == INTERRUPTED:
        subprocess.run([sys.executable, "-m", "results", "leaderboard", str(args.run)], cwd=ROOT, check=False)
    subprocess.run([sys.executable, "-m", "results", "reproduce", str(args.run)], cwd=ROOT, check=False)
    print(f"packed into {packed}: {size:.1f} MiB")
    if size > PACKED_MIB:
        print(
            f"warning: that is more than {PACKED_MIB:g} MiB; `python -m results compact` makes it smaller",
            file=sys.stderr,
        )
    if code == INTERRUPTED:
        print("there is more to do: run the same command again")
    return code


def provide(wheels: Path | None) -> str | None:
    """Installs what is missing here from a folder of wheels; what is still missing and how to bring it, if anything."""
    missing = [wanted for module, wanted in NEEDED.items() if importlib.util.find_spec(module) is None]
    if not missing:
        return None
    bring = f"bring them: pip download --dest DIR {' '.join(missing)}, then --wheels DIR"
    if wheels is None:
        return f"this machine lacks {', '.join(missing)}; {bring}"
    join(wheels)
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--find-links", str(wheels), *missing]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    return f"{', '.join(missing)} cannot be installed from {wheels}: {done.stderr.strip()}" if done.returncode else None


def join(folder: Path) -> None:
    """Makes NAME.whl of NAME.whl.00, NAME.whl.01, ..."""
    parts = sorted(path for path in folder.iterdir() if re.fullmatch(r".+\.whl\.\d+", path.name))
    for name in dict.fromkeys(path.stem for path in parts):
        with (folder / name).open("wb") as whole:
            for part in (path for path in parts if path.stem == name):
                whole.write(part.read_bytes())


def pack(run: Path, file: Path) -> float:
    """Packs a run folder without what only goes on with it; the size in MiB."""

    def kept(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        parts = Path(entry.name).parts
        is_temporary = parts[-1].startswith(".")
        return None if is_temporary or (len(parts) > 1 and parts[1] in LEFT_OUT) else entry

    with tarfile.open(file, "w:gz") as archive:
        archive.add(run, arcname=run.name, filter=kept)
    return file.stat().st_size / 2**20


if __name__ == "__main__":
    sys.exit(main())
