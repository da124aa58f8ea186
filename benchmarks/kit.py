"""What a sweep needs on a machine that has torch and reaches nothing, in pieces that fit through a transfer.

    python -m benchmarks.kit make KIT --there FILE --python 3.12 --data-dir DIR [--piece 60]
    python -m benchmarks.kit join KIT

`make`, here, writes KIT/0, KIT/1, ... of at most so many MiB: wheels of what this project imports and FILE does not
list (`pip freeze` of the machine there, or bare names), at the versions of this environment, then the images of
pools.yaml, Fashion-MNIST first. Files are cut where a piece is full. `join`, there, makes KIT/wheels and KIT/data of
the pieces that have come so far; a file whose parts have not all come is left for later. Then:

    python -m benchmarks.reproduce KIT/data RUN --wheels KIT/wheels
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ("fashion_mnist", "cifar100")
PLATFORMS = [f"manylinux{version}_x86_64" for version in ("_2_28", "_2_27", "_2_24", "_2_17", "2014", "1")]
JAVA = "ray/jars/"  # Ray's Java half: 32 of its 79 MB, which no Python program loads
PART = re.compile(r"(.+)\.part(\d+)of(\d+)")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("make", help="writes the pieces")
    one.add_argument("kit", metavar="KIT", type=Path)
    one.add_argument("--there", metavar="FILE", type=Path, required=True, help="what the other machine has: pip freeze")
    one.add_argument("--python", default=f"{sys.version_info.major}.{sys.version_info.minor}", help="the one there")
    one.add_argument("--data-dir", metavar="DIR", type=Path, required=True, help="with Parquet folders of the images")
    one.add_argument("--piece", metavar="MIB", type=float, default=60.0)
    commands.add_parser("join", help="joins those that have come").add_argument("kit", metavar="KIT", type=Path)
    args = parser.parse_args()
    if args.command == "join":
        for path in join(args.kit):
            print(f"waits for its other parts: {path}", file=sys.stderr)
        return
    if args.kit.exists():
        parser.error(f"{args.kit} is there already, and its pieces would be mixed with new ones; give another folder")
    names = {
        canonicalize_name(re.split(r"[=@ ]", line)[0])
        for line in args.there.read_text(encoding="utf-8").split("\n")
        if line
    }
    with tempfile.TemporaryDirectory() as scratch:
        wheels = Path(scratch) / "wheels"
        download(lacking(names, args.python), args.python, wheels)
        files = [("wheels", path) for path in sorted(wheels.iterdir())]
        files += [(f"data/{name}", path) for name in IMAGES for path in sorted((args.data_dir / name).iterdir())]
        cut(files, args.kit, int(args.piece * 2**20))
    for piece in sorted(args.kit.iterdir()):
        held = [path for path in piece.rglob("*") if path.is_file()]
        print(f"{piece}: {len(held)} files, {sum(path.stat().st_size for path in held) / 2**20:.1f} MiB")


def dependencies() -> list[Requirement]:
    """What this project imports, by pyproject.toml."""
    return [
        Requirement(line)
        for line in tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    ]


def lacking(there: Iterable[str], python: str) -> dict[str, str]:
    """{name: version of this environment} of all that this project needs and a machine with these packages lacks."""
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


def download(versions: dict[str, str], python: str, folder: Path) -> None:
    """Their wheels, for x86-64 Linux, Ray's without its Java half."""
    pinned = [f"{name}=={version}" for name, version in versions.items()]
    platforms = [f"--platform={platform}" for platform in PLATFORMS]
    options = ["--quiet", "--no-deps", "--only-binary=:all:", f"--python-version={python}", f"--dest={folder}"]
    subprocess.run([sys.executable, "-m", "pip", "download", *options, *platforms, *pinned], check=True)
    for path in folder.glob("ray-*.whl"):
        leave_out(path, JAVA)


def leave_out(wheel: Path, prefix: str) -> None:
    """Rewrites a wheel without what is under a folder of it. pip installs what is there, and asks for no more."""
    thin = wheel.with_suffix(".thin")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(thin, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            if not entry.filename.startswith(prefix):
                new.writestr(entry, old.read(entry), zipfile.ZIP_DEFLATED)
    thin.replace(wheel)


def cut(files: Iterable[tuple[str, Path]], kit: Path, limit: int) -> None:
    """Copies files, each into its folder of KIT/0, KIT/1, ...: as many bytes in each piece as may be in it."""
    number, room = 0, limit
    for folder, path in files:
        left, chunks = path.stat().st_size, list[tuple[int, int]]()
        while left:
            if not room:
                number, room = number + 1, limit
            chunks.append((number, min(left, room)))
            left, room = left - chunks[-1][1], room - chunks[-1][1]
        with path.open("rb") as whole:
            for index, (piece, size) in enumerate(chunks):
                suffix = f".part{index}of{len(chunks)}" if len(chunks) > 1 else ""
                target = kit / str(piece) / folder / (path.name + suffix)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(whole.read(size))


def join(kit: Path) -> list[Path]:
    """Puts together what pieces have come, in KIT/wheels and KIT/data; the files that are not whole yet."""
    parts: dict[Path, dict[int, Path]] = {}
    counts: dict[Path, int] = {}
    for path, name in _arrived(kit):
        is_part = PART.fullmatch(path.name)
        target = kit / name.with_name(is_part[1] if is_part else path.name)
        parts.setdefault(target, {})[int(is_part[2]) if is_part else 0] = path
        counts[target] = int(is_part[3]) if is_part else 1
    waiting = []
    for target, have in parts.items():
        if len(have) < counts[target]:
            waiting.append(target)
        elif not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            growing = target.with_name(f".{target.name}")  # a call that is cut must not leave half of it as the whole
            with growing.open("wb") as whole:
                for index in range(counts[target]):
                    with have[index].open("rb") as part:
                        shutil.copyfileobj(part, whole)
            growing.replace(target)
    return waiting


def _arrived(kit: Path) -> Iterator[tuple[Path, Path]]:
    """Every file of the pieces, and what it is called within its piece."""
    for piece in sorted(path for path in kit.iterdir() if path.name.isdigit()):
        for path in sorted(piece.rglob("*")):
            if path.is_file():
                yield path, path.relative_to(piece)


if __name__ == "__main__":
    main()
