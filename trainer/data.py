"""Datasets by name, as uint8 arrays in memory.

Images come from Parquet folders in the Hugging Face form (`DIR/cifar100/train-00000-of-00003.parquet`), from
torchvision (downloaded once into DIR, under a file lock), or, for `digits`, out of scikit-learn. Every dataset leaves
here as 32x32 images in the same form, so that nothing downstream knows where it came from.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer import decoded
from trainer.problems import RequestError, unknown

SIZE = 32
PAD = 4  # RandomCrop(32, padding=4)

Bytes = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Split = tuple[Bytes, Labels]


@dataclass(frozen=True, slots=True)
class Source:
    """Where a dataset comes from, and what is fixed about it.

    Attributes:
        classes: how many.
        flip: whether a horizontal flip is part of its augmentation. A mirrored digit is another digit or none.
        folder: its Parquet folder under the data directory.
        columns: (image, label) in those files.
        torchvision: the class of `torchvision.datasets`; None where there is none.
    """

    classes: int
    flip: bool = True
    folder: str = ""
    columns: tuple[str, str] = ("image", "label")
    torchvision: str | None = None


DATASETS: dict[str, Source] = {
    "cifar10": Source(10, folder="cifar10", columns=("img", "label"), torchvision="CIFAR10"),
    "cifar100": Source(100, folder="cifar100", columns=("img", "fine_label"), torchvision="CIFAR100"),
    "fmnist": Source(10, folder="fashion_mnist", torchvision="FashionMNIST"),
    "digits": Source(10, flip=False),
}


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


def get(name: str) -> Source:
    """What is fixed about the dataset of that name.

    Raises:
        RequestError: there is none; names the nearest and lists them all.
    """
    if name not in DATASETS:
        raise RequestError.of(unknown("dataset", name, DATASETS))
    return DATASETS[name]


def folder(given: Path | None) -> Path:
    """Where images are, or are downloaded to: `data`, unless it was given.

    Raises:
        RequestError: it was given, and is not there: nothing is downloaded into a folder that was mistyped.
    """
    if given is not None and not given.is_dir():
        what = f"there is no folder {given}; make it first, if the images are to be downloaded there"
        raise RequestError.of(what, "--data-dir")
    return given or Path("data")


def load(name: str, data_dir: Path, say: Callable[[str], None] = lambda _: None, *, download: bool = True) -> Dataset:
    """The dataset of that name; downloads it into `data_dir` if it is nowhere else and may be.

    Raises:
        RequestError: an unknown name, or data that can neither be found nor downloaded; says where was looked.
    """
    source = get(name)
    if source.torchvision is None:
        return _prepare(name, source, *_digits())
    shards = sorted((data_dir / source.folder).glob("*.parquet"))
    if not shards:
        return _prepare(name, source, *_from_torchvision(name, source, data_dir, say, download))

    def decode() -> Dataset:
        say(f"decoding {name}, once for this machine")
        splits = (_read_parquet(data_dir / source.folder, split, source.columns) for split in ("train", "test"))
        return _prepare(name, source, *splits)

    stamps = [[str(shard.resolve()), shard.stat().st_size, shard.stat().st_mtime_ns] for shard in shards]
    return decoded.load([name, stamps, source.columns], Dataset, decode)


def class_names(name: str, data_dir: Path) -> list[str] | None:
    """What the classes are called, by the metadata of the dataset's Parquet files; None where it does not say.

    Either the Hugging Face form's own, or `class_names`, one a line.
    """
    source = get(name)
    shards = sorted((data_dir / source.folder).glob("test-*.parquet")) if source.folder else []
    if not shards:
        return None
    import pyarrow.parquet as pq

    metadata = pq.read_schema(shards[0]).metadata or {}
    found = metadata.get(b"class_names", b"").decode().splitlines()
    with contextlib.suppress(KeyError, TypeError, ValueError):
        found = json.loads(metadata[b"huggingface"])["info"]["features"][source.columns[1]]["names"]
    return found if len(found) == source.classes else None


def subset(total: int, samples: int | None) -> npt.NDArray[np.int64]:
    """The indices [min(total, samples)] of the first `samples` images of a fixed shuffle; in order if it is all."""
    if samples is None or samples >= total:
        return np.arange(total)
    return np.random.default_rng(0).permutation(total)[:samples]


def _prepare(name: str, source: Source, train: Split, test: Split) -> Dataset:
    for images, labels in (train, test):
        height, width = images.shape[1:3]
        if (
            height != width
            or height > SIZE
            or len(images) != len(labels)
            or not 0 <= labels.min() <= labels.max() < source.classes
        ):
            what = f"{len(images)} images of {images.shape[1:]}, {len(labels)} labels {labels.min()}..{labels.max()}"
            raise RequestError.of(
                f"{name}: found {what}; allowed are squares of {SIZE}x{SIZE} at most, and {source.classes} classes"
            )
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
    """[N, S, S, C] -> [N, 32, 32, C], S up to 32, as `torchvision.transforms.Resize(32)` does it to a PIL image."""
    if images.shape[1] == SIZE:
        return images
    from PIL import Image

    def resize(image: Bytes) -> Bytes:
        pixels = image.squeeze(2) if image.shape[2] == 1 else image
        return np.asarray(Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.BILINEAR))

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        found = np.stack(list(threads.map(resize, images, chunksize=256)))
    return found.reshape(len(images), SIZE, SIZE, -1)


def _digits() -> tuple[Split, Split]:
    """scikit-learn's 1,797 scans of 8x8 grey levels 0..16, each pixel repeated 4x4; the test set is a fixed fifth."""
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8).repeat(4, axis=1).repeat(4, axis=2)[..., None]
    labels = bunch.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(labels))
    test, train = np.split(order, [len(order) // 5])
    return (images[train], labels[train]), (images[test], labels[test])


def _read_parquet(folder: Path, split: str, columns: tuple[str, str]) -> Split:
    """A split of a Hugging Face image folder: a struct column with the encoded `bytes`, and integer labels."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    shards = sorted(folder.glob(f"{split}-*.parquet"))
    said = {int(match[1]) for shard in shards if (match := re.search(r"-of-(\d+)$", shard.stem))}
    if not shards or (said and said != {len(shards)}):
        of = f" of {max(said)}" if said else ""
        raise RequestError.of(f"found {len(shards)}{of} files {split}-*.parquet in {folder}; copy them all")
    try:
        table = pq.read_table(shards, columns=list(columns))
        encoded = pc.struct_field(table.column(columns[0]), "bytes").to_pylist()  # type: ignore[attr-defined]
        labels = table.column(columns[1]).to_numpy().astype(np.int64)
        return _decode(encoded), labels
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise RequestError.of(f"cannot read {folder}/{split}-*.parquet with columns {columns}: {error}") from None


def _decode(encoded: Sequence[bytes]) -> Bytes:
    """Encoded images -> [N, H, W, C]. Pillow lets go of the interpreter lock while it decodes."""
    from PIL import Image

    def decode(data: bytes) -> Bytes:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        images = np.stack(list(threads.map(decode, encoded, chunksize=256)))
    return images[..., None] if images.ndim == 3 else images


def _from_torchvision(
    name: str, source: Source, data_dir: Path, say: Callable[[str], None], download: bool
) -> tuple[Split, Split]:
    import torchvision.datasets
    from filelock import FileLock

    cls = getattr(torchvision.datasets, str(source.torchvision))

    def read(train: bool) -> Split:
        # Who may not download leaves no trace among somebody's images, not even a lock.
        with FileLock(data_dir / f".{name}.lock") if download else contextlib.nullcontext():
            try:
                found = cls(data_dir, train=train, download=False)
            except RuntimeError:
                if not download:
                    what = f"there are no images of {name} in {data_dir}"
                    raise RequestError.of(f"{what}; give the folder that the sweep read them from") from None
                say(f"downloading {name} into {data_dir}")
                found = cls(data_dir, train=train, download=True)
        images = np.asarray(found.data)
        return images[..., None] if images.ndim == 3 else images, np.asarray(found.targets, np.int64)

    try:
        if download:
            data_dir.mkdir(parents=True, exist_ok=True)
        return read(train=True), read(train=False)
    except (OSError, RuntimeError) as error:
        raise RequestError.of(
            f"its images are neither in {data_dir / source.folder} (Parquet) nor in {data_dir} (torchvision), and the "
            f"download failed: {error}; point --data-dir at a folder that holds it, or run once with a network"
        ) from None
