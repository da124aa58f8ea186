"""Which Parquet files hold the splits of a dataset: every shard of them once, or a refusal that names files.

A split is `train.parquet`, or shards: `train-00000-of-00002.parquet`, which may end in a hash, as the Hub writes them,
or `train-0.parquet`; or such files in a folder of its name, whatever they are called there: `train/0000.parquet`. Both
splits lie in one folder: the data directory, or a folder in it that is called as the dataset is (`cifar-100`), or a
folder within that, as the Hub has them (`plain_text`).
"""

from __future__ import annotations

import itertools
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from search_spaces.errors import Problem, RequestError

NEEDED = ("train", "test")
SPLITS = (*NEEDED, "validation", "val", "valid", "dev")
CONFIGS = ("plain_text", "data", "default")  # what the Hub calls a folder of splits, whatever the dataset
# Folders whose names say nothing are entered twice in a row: ImageNet has its 1.2 million files three levels down.
UNNAMED_LEVELS, NAMED_LEVELS = 2, 4

_STEM = re.compile(r"(?P<word>[a-z]*)[-_.]?(?:(?P<index>\d+)(?:-of-(?P<count>\d+))?(?![0-9a-z]))?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Shard:
    """A file, as its name has it: part `index` of `count` of a split; None where it says neither."""

    path: Path
    folder: Path  # that of the splits
    split: str
    word: str  # what stands before the numbers
    index: int | None
    count: int | None


@dataclass(frozen=True, slots=True)
class Place:
    """Where one dataset is looked for.

    Attributes:
        data_dir: the data directory.
        name: of the dataset.
        called: what the folder of each dataset is called, without regard to case, `-` and `_`.
    """

    data_dir: Path
    name: str
    called: Mapping[str, Sequence[str]]

    def splits(self) -> dict[str, list[Path]]:
        """Return the files of each split, in order; empty where there are none.

        Raises:
            RequestError: a split that is there twice, or not whole.
        """
        folders: defaultdict[Path, defaultdict[str, list[Shard]]] = defaultdict(lambda: defaultdict(list))
        for path in filter(self._is_ours, self._files()):
            if shard := _parsed(path, self.data_dir):
                folders[shard.folder][shard.split].append(shard)
        holding = [folder for folder, splits in folders.items() if splits.keys() & set(NEEDED)] or list(folders)
        if len(holding) > 1:
            each = " and in ".join(f"{folder} ({', '.join(sorted(folders[folder]))})" for folder in holding)
            raise RequestError.of(f"expected one folder of Parquet files, got {each}; give it as --data-dir")
        found = folders[holding[0]] if holding else {}
        faults = [what for split in NEEDED if split in found and (what := _fault(found[split]))]
        if faults:
            raise RequestError(Problem("", what) for what in faults)
        return {
            split: [shard.path for shard in sorted(shards, key=lambda shard: shard.index or 0)]
            for split, shards in found.items()
        }

    def folders(self) -> list[Path]:
        """Return the folders in the data directory that are called as the dataset is."""
        if not self.data_dir.is_dir():
            return []
        return sorted(path for path in self.data_dir.iterdir() if self._owner(path.name) == self.name and path.is_dir())

    def refuse_strays(self, torchvisions: Sequence[str]) -> None:
        """Refuse to download where somebody has put images that cannot be read as they lie.

        Args:
            torchvisions: the files and folders that torchvision leaves, whose download may have been interrupted.

        Raises:
            RequestError: there are Parquet files that are not another dataset's, or files in a folder of this one's.
        """
        folder = self.called[self.name][0]
        expected = (
            "expected train.parquet, train-00000-of-00001.parquet or train/0000.parquet, and test likewise, in "
            f"DIR/{folder} or DIR, for --data-dir DIR"
        )
        owner = self._owner_of_all()
        strays = [path for path in self._files() if self._named(path) <= {self.name}]
        if strays:
            whose = "" if owner in (None, self.name) else f" in a folder that is called as {owner} is"
            raise RequestError.of(f"{expected}, got {_some(strays)}{whose}")
        for place in (*self.folders(), *([self.data_dir] if owner == self.name and self.data_dir.is_dir() else [])):
            found = sorted(path for path in place.iterdir() if path.name[0] != "." and path.name not in torchvisions)
            if found and place.name not in torchvisions:
                raise RequestError.of(f"{expected}, got {_some(found)}")

    def _owner(self, folder: str) -> str | None:
        """Return whose folder `CIFAR-100` is, or `datasets--uoft-cs--cifar100` in the Hub's cache; None if nobody's."""
        word = _squeezed(re.split("--|__+", folder)[-1])
        return next((name for name, words in self.called.items() if word in map(_squeezed, words)), None)

    def _owner_of_all(self) -> str | None:
        """Return the dataset that the data directory itself is called as, here or where a link leads."""
        return self._owner(self.data_dir.absolute().name) or self._owner(self.data_dir.resolve().name)

    def _named(self, path: Path) -> set[str]:
        """Return the datasets that are named on the way from the data directory to a file."""
        folders = path.parent.relative_to(self.data_dir).parts
        return {owner for folder in folders if (owner := self._owner(folder))}

    def _is_ours(self, path: Path) -> bool:
        if named := self._named(path):
            return named == {self.name}
        if owner := self._owner_of_all():
            return owner == self.name
        first = path.relative_to(self.data_dir).parts[0].lower()
        return path.parent == self.data_dir or first in (*CONFIGS, *SPLITS)  # `svhn` is another dataset

    def _files(self) -> Iterator[Path]:
        """Yield the Parquet files in the data directory, whosever they are."""
        named = self._owner_of_all() is not None
        return self._walk(self.data_dir, NAMED_LEVELS if named else UNNAMED_LEVELS, named)

    def _walk(self, folder: Path, levels: int, named: bool) -> Iterator[Path]:
        try:
            with os.scandir(folder) as listing:
                entries = sorted((entry for entry in listing if entry.name[0] != "."), key=lambda entry: entry.name)
        except OSError as error:
            if named and not isinstance(error, FileNotFoundError):
                raise RequestError.of(f"cannot look into {folder}: {error.strerror}") from None
            return  # `lost+found`
        for entry in entries:
            if entry.name.endswith(".parquet") and entry.is_file():
                yield folder / entry.name
            elif levels and entry.is_dir():
                enters = not named and self._owner(entry.name) is not None
                yield from self._walk(folder / entry.name, NAMED_LEVELS if enters else levels - 1, named or enters)


def _stem(path: Path) -> re.Match[str]:
    return next(_STEM.finditer(path.stem))  # every part of it may be empty


def _squeezed(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


def _parsed(path: Path, data_dir: Path) -> Shard | None:
    match = _stem(path)
    word, above = match["word"].lower(), path.parent.name.lower()
    index, count = (int(found) if found else None for found in match.group("index", "count"))
    if path.parent != data_dir and above in SPLITS and (word == above or word not in SPLITS):
        return Shard(path, path.parent.parent, above, word, index, count)
    return Shard(path, path.parent, word, word, index, count) if word in SPLITS else None


def _fault(shards: Sequence[Shard]) -> str | None:
    """Return what keeps the files of one split from being each of its shards once."""
    split, total, parent = shards[0].split, shards[0].count, shards[0].path.parent
    wholes = {(one.path.parent, one.word, one.count, one.index is None): one.path for one in shards}
    if len(wholes) > 1:
        return f"expected the shards of one whole of {split}, got {_some(list(wholes.values()))}; keep one form of it"
    by_index: defaultdict[int, list[Path]] = defaultdict(list)
    for shard in shards:
        by_index[shard.index or 0].append(shard.path)
    if twice := [paths for paths in by_index.values() if len(paths) > 1]:
        return f"expected each shard of {split} once, got {_some(twice[0])}; keep one"
    last = max(by_index)
    if total is not None and last >= total:
        return f"expected numbers of shards below {total}, which begin with 0, got {by_index[last][0]}"
    of = total or last + 1
    if missing := list(itertools.islice((index for index in range(of) if index not in by_index), 4)):
        names = [_numbered(_stem(shards[0].path)[0], index) for index in missing]
        listed = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        return f"expected {of} files {split}-*.parquet in {parent}, got {len(shards)}; missing: {listed}; copy them all"
    return None


def _numbered(stem: str, index: int) -> str:
    """Return the same name with another number: `train-00001-of-00002`."""
    return re.sub(r"\d+", lambda found: f"{index:0{len(found[0])}}", stem, count=1)


def _some(paths: Sequence[Path]) -> str:
    return " and ".join(map(str, paths[:2])) + (f" and {len(paths) - 2} more" if len(paths) > 2 else "")
