"""Images in torchvision's own files, which torchvision reads and downloads in a process of its own.

It imports torch, which takes 2 s and 300 MiB of whoever does, and the driver of a sweep does without. Where the arrays
are then kept for the next time is `decoded`'s business.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import numpy as np

from search_spaces import machine
from search_spaces.text import last_line
from trainer.data.rows import Split

# {class of torchvision.datasets: the folder that it keeps images in, and the archive that it downloads}
LEAVES = {
    "CIFAR10": ("cifar-10-batches-py", "cifar-10-python.tar.gz"),
    "CIFAR100": ("cifar-100-python", "cifar-100-python.tar.gz"),
    "FashionMNIST": ("FashionMNIST", ""),
}


def read(name: str, root: Path) -> tuple[Split, Split]:
    """Return the training and the test split, images [N, S, S, C] uint8 and labels [N] int64.

    Args:
        name: the class of `torchvision.datasets`.
        root: the folder that holds what the class calls its own folder.

    Raises:
        OSError: they are not there, or not whole, or cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="images-") as folder:
        out = Path(folder) / "images.npz"
        _run(name, str(root), str(out))
        with np.load(out) as arrays:
            train, test = ((arrays[f"{split}_images"], arrays[f"{split}_labels"]) for split in ("train", "test"))
    return train, test


def download(name: str, root: Path) -> None:
    """Download what is not there, or not whole.

    Raises:
        OSError: it cannot be had.
    """
    _run(name, str(root))


def _run(*args: str) -> None:
    command, env = machine.module("trainer.data", *args), machine.environment()
    done = subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8", env=env, check=False)
    if done.returncode:
        raise OSError(last_line(done.stdout) or f"its process ended with exit code {done.returncode}")
