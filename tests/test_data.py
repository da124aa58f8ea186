"""Datasets: where they come from, and what they are when they arrive."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torchvision.datasets
from PIL import Image
from torchvision import transforms

from search_spaces import datasets
from search_spaces.errors import RequestError
from search_spaces.messages import shown_by
from tests.parquet_images import noise
from trainer import data
from trainer.data import PAD, Dataset, dataset, torchvision_files


def inner(dataset: Dataset) -> np.ndarray:
    return dataset.train_images[:, PAD:-PAD, PAD:-PAD]


def test_digits_are_scikit_learns_split_once(digits: Dataset) -> None:
    from sklearn.datasets import load_digits

    assert digits.train_images.shape == (1438, 40, 40, 1)
    assert digits.test_images.shape == (359, 32, 32, 1)
    ours = np.concatenate([inner(digits), digits.test_images])[:, ::4, ::4, 0]
    theirs = np.rint(load_digits().images * 255 / 16).astype(np.uint8)  # pyright: ignore
    assert sorted(map(bytes, ours.reshape(1797, -1))) == sorted(map(bytes, theirs.reshape(1797, -1)))
    assert np.bincount(digits.test_labels).min() > 20, "every class is in the test set"
    again = data.load("digits", Path("elsewhere"))
    assert np.array_equal(again.train_images, digits.train_images)
    assert not digits.flip, "a mirrored digit is another one, or none"


def test_the_margin_is_raw_black(digits: Dataset) -> None:
    margin = digits.train_images.copy()
    margin[:, PAD:-PAD, PAD:-PAD] = 0
    assert not margin.any()


def test_normalisation_is_measured_before_the_margin_is_added(digits: Dataset) -> None:
    pixels = inner(digits) / 255
    np.testing.assert_allclose(digits.mean, pixels.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(digits.std, pixels.std(axis=(0, 1, 2)), rtol=1e-9)
    assert "mean 0.3050" in str(digits)


@pytest.mark.soak
def test_real_cifar100(shared_data: Path) -> None:
    dataset = data.load("cifar100", shared_data)
    assert dataset.train_images.shape == (50_000, 40, 40, 3)
    assert dataset.test_images.shape == (10_000, 32, 32, 3)
    assert np.array_equal(np.bincount(dataset.train_labels), np.full(100, 500))
    assert np.array_equal(np.bincount(dataset.test_labels), np.full(100, 100))
    # The constants that everybody uses.
    np.testing.assert_allclose(dataset.mean, (0.5071, 0.4865, 0.4409), atol=1e-4)
    np.testing.assert_allclose(dataset.std, (0.2673, 0.2564, 0.2762), atol=1e-4)


@pytest.mark.soak
def test_real_fashion_mnist_is_resized_as_torchvision_does(shared_data: Path) -> None:
    """Equal in every pixel, over 400 images of each split, to Resize(32) of the PIL image."""
    dataset = data.load("fmnist", shared_data)
    assert dataset.train_images.shape == (60_000, 40, 40, 1)
    assert dataset.test_images.shape == (10_000, 32, 32, 1)
    resize = transforms.Resize(32)
    for split, ours in (("train", inner(dataset)), ("test", dataset.test_images)):
        shards = sorted((shared_data / "fashion_mnist").glob(f"{split}-*.parquet"))
        cells = pq.read_table(shards[0], columns=["image"])["image"][:400].to_pylist()
        for mine, cell in zip(ours[:400, :, :, 0], cells, strict=True):
            with Image.open(io.BytesIO(cell["bytes"])) as image:
                assert (image.size, image.mode) == ((28, 28), "L")
                assert np.array_equal(mine, np.asarray(resize(image)))
    np.testing.assert_allclose((dataset.mean[0], dataset.std[0]), (0.2856, 0.3385), atol=1e-4)
    assert "mean 0.2856 and std 0.3385, of all training images at 32x32" in str(dataset)
    assert dataset.flip


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [28, 8, 1])
def test_small_images_are_resized_as_torchvision_does(size: int, channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, size, size, channels), np.uint8)
    for mine, original in zip(dataset._resized(images), images, strict=True):
        theirs = transforms.Resize(32)(Image.fromarray(original.squeeze(2) if channels == 1 else original))
        assert np.array_equal(mine.squeeze(), np.asarray(theirs))


def write_torchvisions(folder: Path, images: np.ndarray) -> None:
    """Fashion-MNIST as torchvision leaves it behind: idx files under FashionMNIST/raw; the first two to test."""
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, n in (("train", len(images)), ("t10k", 2)):
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, n, 28, 28) + images[:n].tobytes())
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, n) + bytes(range(n)))


def test_torchvisions_own_files_are_read(tmp_path: Path) -> None:
    images = noise(0, 6, (28, 28))
    write_torchvisions(tmp_path, images)
    dataset = data.load("fmnist", tmp_path)
    resized = [np.asarray(transforms.Resize(32)(Image.fromarray(image))) for image in images]
    assert np.array_equal(inner(dataset)[..., 0], resized)
    assert dataset.test_labels.tolist() == [0, 1]


def test_reading_them_imports_no_torch_and_happens_once(tmp_path: Path) -> None:
    write_torchvisions(tmp_path, noise(0, 2, (28, 28)))
    code = (
        "import sys\nfrom pathlib import Path\nfrom trainer import data\nfrom trainer.data import torchvision_files\n"
        f"place = Path({str(tmp_path)!r})\nassert len(data.load('fmnist', place).train_labels) == 2\n"
        "torchvision_files.read = None\ndata.load('fmnist', place)\nassert 'torch' not in sys.modules\n"
    )
    environment = os.environ | {"POOLSWEEP_CACHE": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], env=environment, check=True)


def test_what_torchvision_leaves_is_called_as_it_calls_it() -> None:
    wanted = {spec.torchvision for spec in datasets.DATASETS.values() if spec.torchvision}
    assert wanted == set(torchvision_files.LEAVES)
    for name, (own, archive) in torchvision_files.LEAVES.items():
        cls = getattr(torchvision.datasets, name)
        assert getattr(cls, "base_folder", name) == own
        assert getattr(cls, "filename", "") == archive


def test_a_download_that_fails_says_where_was_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for proxy in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")  # where nobody listens
    said: list[str] = []
    (tmp_path / "cifar-100-python").mkdir()
    with shown_by(said.append), pytest.raises(RequestError) as caught:
        data.load("cifar100", tmp_path)
    assert said[-1] == f"downloading cifar100 into {tmp_path}"
    assert said[0].startswith(f"{tmp_path / 'cifar-100-python'} cannot be read: Dataset not found or corrupted")
    assert str(tmp_path / "cifar100") in str(caught.value)
    assert "--data-dir" in str(caught.value)


def test_who_may_not_download_leaves_no_trace(tmp_path: Path) -> None:
    for name in ("cifar100", "fmnist"):
        with pytest.raises(RequestError, match=f"there are no images of {name} in {tmp_path}; give the folder"):
            data.load(name, tmp_path, download=False)
    assert list(tmp_path.iterdir()) == []


def test_a_subset_is_the_first_of_a_fixed_shuffle() -> None:
    small, large = data.subset(100, 10), data.subset(100, 60)
    assert np.array_equal(small, large[:10])
    assert len(set(large)) == 60
    assert not np.array_equal(large, np.sort(large))
    for everything in (None, 100, 1000):
        assert np.array_equal(data.subset(100, everything), np.arange(100))
