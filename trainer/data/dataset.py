"""Datasets by name, as uint8 arrays in memory.

Images come from Parquet files as the Hugging Face Hub has them (`shards.py`: which; `rows.py`, `pictures.py`: how they
become arrays), from torchvision (downloaded once into DIR, under a file lock), or, for `digits`, out of scikit-learn.
Every dataset leaves here as 32x32 images in the same form, so that nothing downstream knows where it came from.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from search_spaces import datasets, machine
from search_spaces.datasets import DatasetSpec
from search_spaces.errors import RequestError
from search_spaces.messages import log
from trainer.data import decoded, pictures, rows, torchvision_files
from trainer.data.pictures import Bytes
from trainer.data.rows import Labels, Split
from trainer.data.shards import NEEDED, Place

SIZE = pictures.LARGEST
PAD = 4  # RandomCrop(32, padding=4)


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset in memory.

    Attributes:
        train_images: [N, 40, 40, C] uint8, each image in a raw-black margin of 4 pixels: what RandomCrop pads at every
            epoch is padded here once. C is 1 for grey images, which the trainer repeats to 3.
        train_labels: [N] int64.
        test_images: [M, 32, 32, C] uint8.
        test_labels: [M] int64.
        mean, std: per channel, pixels in [0, 1], of all training images as they are trained on, 32x32: of
            Fashion-MNIST after it has been enlarged (0.2856 and 0.3385), which is not quite what its 28x28 pixels have
            (0.2860 and 0.3530). `train_samples` does not change them.
    """

    name: str
    classes: int
    flip: bool
    train_images: Bytes
    train_labels: Labels
    test_images: Bytes
    test_labels: Labels
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __str__(self) -> str:
        shown = [" ".join(f"{value:.4f}" for value in values) for values in (self.mean, self.std)]
        return (
            f"{self.name}: {len(self.train_labels)} training and {len(self.test_labels)} test images, {self.classes} "
            f"classes; normalised by mean {shown[0]} and std {shown[1]}, of all training images at {SIZE}x{SIZE}"
        )


def folder(given: Path | None) -> Path:
    """Return where images are, or are downloaded to: `data`, unless it was given.

    Raises:
        RequestError: it was given, and is not there: nothing is downloaded into a folder that was mistyped.
    """
    if given is not None and not given.is_dir():
        what = f"there is no folder {given}; make it first, if the images are to be downloaded there"
        raise RequestError.of(what, "--data-dir")
    return given or Path("data")


def load(name: str, data_dir: Path, *, download: bool = True) -> Dataset:
    """Return the dataset of that name; download it into `data_dir` if it is nowhere else and may be.

    Raises:
        RequestError: an unknown name, or data that can neither be found nor downloaded; says where was looked.
    """
    source = datasets.get(name)
    if source.torchvision is None:
        version = importlib.metadata.version("scikit-learn")  # to import it takes 37 MiB and a second of each driver
        return decoded.load([name, version], Dataset, lambda: (_prepare(name, source, *_digits()), True))
    place = _place(name, data_dir)
    splits = place.splits()
    if not splits:
        return _from_torchvision(name, source, place, download)
    if not splits.keys() >= set(NEEDED):
        place_of = splits[min(splits)][0].parent
        raise RequestError.of(f"expected train and test in {place_of}, got {', '.join(sorted(splits))}")

    def decode() -> tuple[Dataset, bool]:
        log.info(f"decoding {name} from {splits['train'][0].parent}, once for this machine")
        read, outside = rows.read({split: splits[split] for split in NEEDED}, source.labels, source.classes, data_dir)
        return _prepare(name, source, read["train"], read["test"]), not outside

    stamps = {split: [_stamp(file) for file in splits[split]] for split in NEEDED}
    return decoded.load([name, stamps, source.labels, source.classes], Dataset, decode)


def refuse_shared(names: Iterable[str], data_dir: Path) -> None:
    """Refuse two datasets that would be read from the same files, in a folder that is called as neither is.

    Raises:
        RequestError: there are two such.
    """
    owner: dict[Path, str] = {}
    for name in names:
        files: list[Path] = []
        with contextlib.suppress(RequestError):  # which `load` raises
            files = _place(name, data_dir).splits().get("train", []) if datasets.DATASETS[name].called else []
        for file in files[:1]:
            if (other := owner.setdefault(file, name)) != name:
                what = f"{other} and {name} would both be read from {file}; put each into a folder called as it is"
                raise RequestError.of(what, "--data-dir")


def class_names(name: str, data_dir: Path) -> list[str] | None:
    """Return what the classes are called, by the metadata of the dataset's Parquet files; None where it does not say.

    Either the Hugging Face form's own, or `class_names`, one a line.
    """
    source = datasets.get(name)
    splits = _place(name, data_dir).splits() if source.called else {}
    if "test" not in splits:
        return None
    import pyarrow.parquet as pq

    schema = pq.read_schema(splits["test"][0])
    metadata = schema.metadata or {}
    found = metadata.get(b"class_names", b"").decode().splitlines()
    label = next((label for label in source.labels if label in schema.names), "")
    with contextlib.suppress(KeyError, TypeError, ValueError):
        found = json.loads(metadata[b"huggingface"])["info"]["features"][label]["names"]
    return found if len(found) == source.classes else None


def _place(name: str, data_dir: Path) -> Place:
    return Place(data_dir, name, {other: source.called for other, source in datasets.DATASETS.items()})


def _stamp(file: Path) -> list[str | int]:
    found = file.stat()
    return [str(file.resolve()), found.st_size, found.st_mtime_ns]


def subset(total: int, samples: int | None) -> npt.NDArray[np.int64]:
    """Return [min(total, samples)], the first indices of a fixed shuffle; all of them in order."""
    if samples is None or samples >= total:
        return np.arange(total)
    return np.random.default_rng(0).permutation(total)[:samples]


def _prepare(name: str, source: DatasetSpec, train: Split, test: Split) -> Dataset:
    images = _resized(train[0])
    # A histogram of bytes gives exact sums at a tenth of the time of a float64 pass over 150 MB.
    counts = np.stack([np.bincount(images[..., c].ravel(), minlength=256) for c in range(images.shape[-1])])
    levels = np.arange(256) / 255
    mean = counts @ levels / counts.sum(axis=1)
    variance = counts @ levels**2 / counts.sum(axis=1) - mean**2
    return Dataset(
        name,
        source.classes,
        source.flip,
        np.pad(images, ((0, 0), (PAD, PAD), (PAD, PAD), (0, 0))),
        train[1],
        _resized(test[0]),
        test[1],
        tuple(mean.tolist()),
        tuple(np.sqrt(variance).tolist()),
    )


def _resized(images: Bytes) -> Bytes:
    """Map [N, S, S, C] to [N, 32, 32, C], S <= 32, as `torchvision.transforms.Resize(32)` does it to a PIL image."""
    if images.shape[1] == SIZE:
        return images
    from PIL import Image

    def resize(image: Bytes) -> Bytes:
        pixels = image.squeeze(2) if image.shape[2] == 1 else image
        return np.asarray(Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.BILINEAR))

    with ThreadPoolExecutor(machine.cores()) as threads:
        found = np.stack(list(threads.map(resize, images, chunksize=256)))
    return found.reshape(len(images), SIZE, SIZE, -1)


def _digits() -> tuple[Split, Split]:
    """Return scikit-learn's 1,797 scans of 8x8 grey levels 0..16, each pixel repeated 4x4; a fixed fifth to test."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8).repeat(4, axis=1).repeat(4, axis=2)[..., None]
    labels = bunch.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(labels))
    test, train = np.split(order, [len(order) // 5])
    return (images[train], labels[train]), (images[test], labels[test])


def _from_torchvision(name: str, source: DatasetSpec, place: Place, download: bool) -> Dataset:
    data_dir, cls = place.data_dir, str(source.torchvision)
    own, archive = torchvision_files.LEAVES[cls]
    roots = (data_dir, *place.folders(), *([data_dir.parent] if data_dir.name == own else []))

    def read(root: Path) -> Dataset:
        def decode() -> tuple[Dataset, bool]:
            train, test = torchvision_files.read(cls, root)
            if (most := max(train[1].max(), test[1].max())) >= source.classes:
                raise RequestError.of(f"{root}: expected labels from 0 to {source.classes - 1}, got {most}")
            return _prepare(name, source, train, test), True

        stamps = sorted(_stamp(file) for file in (root / own).rglob("*") if file.is_file())
        return decoded.load([name, "torchvision", stamps], Dataset, decode)

    def read_any() -> Dataset | None:
        for root in roots:
            if (root / own).is_dir():
                try:
                    return read(root)
                except OSError as error:
                    log.info(f"{root / own} cannot be read: {error}")
        return None

    if (found := read_any()) is not None:
        return found
    place.refuse_strays((own, archive))
    if not download:
        what = f"there are no images of {name} in {data_dir}"
        raise RequestError.of(f"{what}; give the folder that the sweep read them from")
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(data_dir / f".{name}.lock"):
            if (found := read_any()) is not None:  # by now another process has downloaded them
                return found
            log.info(f"downloading {name} into {data_dir}")
            torchvision_files.download(cls, data_dir)
            return read(data_dir)
    except OSError as error:
        raise RequestError.of(
            f"its images are neither in {data_dir / source.called[0]} (Parquet) nor in {data_dir} (torchvision), and "
            f"the download failed: {error}; point --data-dir at a folder that holds it, or run once with a network"
        ) from None
