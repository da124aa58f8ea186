"""What a sweep needs on a machine that has torch and reaches nothing, in pieces that fit through a transfer.

    python -m benchmarks.kit make KIT --there FILE --python 3.12 --data-dir DIR [--piece 60]
    python -m benchmarks.kit join KIT

`make`, here, writes KIT/0of5, KIT/1of5, ... of at most so many MiB: one archive, cut, of the wheels of what this
project imports and FILE does not list (`pip freeze` of the machine there, or bare names), at the versions of this
environment, and of the images of pools.yaml. `join`, there, makes KIT/wheels and KIT/data of the pieces. Then:

    python -m benchmarks.reproduce KIT/data RUN --wheels KIT/wheels
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from search_spaces.machine import ROOT

IMAGES = ("fashion_mnist", "cifar100")
PLATFORMS = [f"manylinux{version}_x86_64" for version in ("_2_28", "_2_27", "_2_24", "_2_17", "2014", "1")]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("make", help="writes the pieces")
    one.add_argument("kit", metavar="KIT", type=Path)
    one.add_argument("--there", metavar="FILE", type=Path, required=True, help="what the other machine has: pip freeze")
    one.add_argument("--python", default=f"{sys.version_info.major}.{sys.version_info.minor}", help="the one there")
    one.add_argument("--data-dir", metavar="DIR", type=Path, required=True, help="with Parquet folders of the images")
    one.add_argument("--piece", metavar="MIB", type=float, default=60.0)
    commands.add_parser("join", help="joins them").add_argument("kit", metavar="KIT", type=Path)
    args = parser.parse_args()
    if args.command == "join":
        if missing := join(args.kit):
            parser.error(f"{args.kit} lacks the pieces {', '.join(missing)}")
        return
    if args.kit.exists():
        parser.error(f"{args.kit} is there already, and its pieces would be mixed with new ones; give another folder")
    there = args.there.read_text(encoding="utf-8").splitlines()
    names = {canonicalize_name(re.split(r"[=@ ]", line)[0]) for line in there if line}
    with tempfile.TemporaryDirectory() as scratch:
        download(lacking(names, args.python), args.python, Path(scratch))
        folders = {"wheels": Path(scratch), **{f"data/{name}": args.data_dir / name for name in IMAGES}}
        cut(folders, args.kit, int(args.piece * 2**20))
    for piece in sorted(args.kit.iterdir()):
        print(f"{piece}: {piece.stat().st_size / 2**20:.1f} MiB")


def dependencies() -> list[Requirement]:
    """Return what this project imports, by pyproject.toml."""
    return [
        Requirement(line)
        for line in tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    ]


def lacking(there: Iterable[str], python: str) -> dict[str, str]:
    """Return {name: version of this environment} of all that this project needs and a machine with those lacks."""
    there, found, todo = set(there), dict[str, str](), [(need, "") for need in dependencies()]
    while todo:
        need, extra = todo.pop()
        name = canonicalize_name(need.name)
        if name in there or (need.marker and not need.marker.evaluate({"extra": extra, "python_version": python})):
            continue
        new = name not in found
        found[name] = importlib.metadata.version(name)
        requires = [Requirement(line) for line in importlib.metadata.requires(name) or ()]
        todo += [(each, extra) for each in requires for extra in (*need.extras, *[""] * new)]
    return found


def download(versions: Mapping[str, str], python: str, folder: Path) -> None:
    """Download their wheels, for x86-64 Linux."""
    pinned = [f"{name}=={version}" for name, version in versions.items()]
    platforms = [f"--platform={platform}" for platform in PLATFORMS]
    options = ["--quiet", "--no-deps", "--only-binary=:all:", f"--python-version={python}", f"--dest={folder}"]
    subprocess.run([sys.executable, "-m", "pip", "download", *options, *platforms, *pinned], check=True)


def cut(folders: Mapping[str, Path], kit: Path, limit: int) -> None:
    """Write one archive of {name in it: folder} in pieces of at most so many bytes."""
    with tempfile.TemporaryFile() as whole:
        with tarfile.open(fileobj=whole, mode="w") as archive:
            for name, folder in folders.items():
                archive.add(folder, name)
        count = -(-whole.tell() // limit)
        whole.seek(0)
        kit.mkdir(parents=True)
        for number in range(count):
            (kit / f"{number}of{count}").write_bytes(whole.read(limit))


def join(kit: Path) -> list[str]:
    """Unpack the archive beside its pieces; return those that have not come yet, without which nothing is."""
    there = {path.name for path in kit.glob("*of*")}
    count = max((int(name.partition("of")[2]) for name in there), default=1)
    pieces = [f"{number}of{count}" for number in range(count)]
    if missing := [name for name in pieces if name not in there]:
        return missing
    with tempfile.TemporaryFile() as whole:
        for name in pieces:
            whole.write((kit / name).read_bytes())
        whole.seek(0)
        with tarfile.open(fileobj=whole) as archive:
            archive.extractall(kit, filter="data")
    return []


if __name__ == "__main__":
    main()
