"""What training has come to, as files that leave the machine: packed anew again and again, each time whole."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.rental.pieces import CHECKPOINTS, FILE
from benchmarks.rental.settings import write, write_json

RECORDS = ("trials", "epochs", "logs", "attempts", "space.yaml", "pools.json", "train.json")
EVIDENCE = "evidence.tar.gz"
PART = "checkpoints.tar.*"
COMES_BACK = 64 * 2**20  # bytes of all files that come back
OTHERS = 3 * 2**20  # of them for the log, the results of stages, and what the evidence grows by until the next time


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
        for path in [*(run / name for name in RECORDS), beside / "train.txt", beside / CHECKPOINTS]:
            if path.exists():
                archive.add(path, arcname=path.name, filter=_whole)
    write(beside / EVIDENCE, packed.getvalue())


def pack_checkpoints(run: Path, beside: Path) -> list[str]:
    """Write as many checkpoints as come back into `checkpoints.tar.0` and on, each at most a file; return their names.

    Which those are, and a digest of each, goes into a file that the evidence takes along: parts may be lost.
    """
    evidence = beside / EVIDENCE
    room = COMES_BACK - OTHERS - (evidence.stat().st_size if evidence.exists() else 0)
    packed, taken = io.BytesIO(), dict[str, str]()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for path in sorted((run / "checkpoints").glob("*.pt"), key=lambda path: path.stat().st_size):
            data = path.read_bytes()
            if packed.tell() + len(data) < room - 2**16:
                entry = tarfile.TarInfo(f"checkpoints/{path.name}")
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
                taken[path.name] = hashlib.sha256(data).hexdigest()
    write_json(beside / CHECKPOINTS, taken)
    parts = range(-(-len(packed.getbuffer()) // FILE)) if taken else ()
    for number in parts:
        write(beside / f"checkpoints.tar.{number}", bytes(packed.getbuffer()[number * FILE : (number + 1) * FILE]))
    for old in set(beside.glob(PART)) - {beside / f"checkpoints.tar.{number}" for number in parts}:
        old.unlink()
    return list(taken)


def _whole(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if Path(entry.name).name.startswith(".") else entry
