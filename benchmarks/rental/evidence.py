"""What training has come to, as files that leave the machine: packed anew again and again, each time whole."""

from __future__ import annotations

import contextlib
import fcntl
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.rental.pieces import FILE
from benchmarks.rental.settings import write

RECORDS = ("trials", "epochs", "logs", "attempts", "space.yaml", "pools.json")
EVIDENCE = "evidence.tar.gz"
PART = "checkpoints.tar.*"
PARTS = 5  # of the checkpoints: with evidence and log, seven of the eight files that come back


@contextlib.contextmanager
def undisturbed(place: Path) -> Iterator[None]:
    """Within the block nobody else packs or copies there: parts are of one time."""
    with (place / "packing").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def pack(run: Path, beside: Path) -> None:
    """Write `evidence.tar.gz` beside the run folder: all that `results` reads, and what training said of itself."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=5) as archive:
        for path in [*(run / name for name in RECORDS), *beside.glob("train.*")]:
            if path.exists():
                archive.add(path, arcname=path.name, filter=_whole)
    write(beside / EVIDENCE, packed.getvalue())


def pack_checkpoints(run: Path, beside: Path) -> list[str]:
    """Write as many checkpoints as fit into `checkpoints.tar.0` and on, each at most a file; return their names."""
    packed, taken = io.BytesIO(), list[str]()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for path in sorted((run / "checkpoints").glob("*.pt"), key=lambda path: path.stat().st_size):
            if packed.tell() + path.stat().st_size < PARTS * FILE - 2**16:
                archive.add(path, arcname=f"checkpoints/{path.name}")
                taken.append(path.name)
    parts = range(-(-len(packed.getbuffer()) // FILE)) if taken else ()
    for number in parts:
        write(beside / f"checkpoints.tar.{number}", bytes(packed.getbuffer()[number * FILE : (number + 1) * FILE]))
    for old in set(beside.glob(PART)) - {beside / f"checkpoints.tar.{number}" for number in parts}:
        old.unlink()
    return taken


def _whole(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if Path(entry.name).name.startswith(".") else entry
