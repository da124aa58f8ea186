"""Images in torchvision's own files, which torchvision reads and downloads in a process of its own.

It imports torch, which takes 2 s and 300 MiB of whoever does, and the driver of a sweep does without. Where the arrays
are then kept for the next time is `decoded`'s business.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from search_spaces import machine
from trainer.data.rows import Split

# {class of torchvision.datasets: the folder that it keeps images in, and the archive that it downloads}
LEAVES = {
    "CIFAR10": ("cifar-10-batches-py", "cifar-10-python.tar.gz"),
    "CIFAR100": ("cifar-100-python", "cifar-100-python.tar.gz"),
    "FashionMNIST": ("FashionMNIST", ""),
}


def read(name: str, root: Path, *, download: bool = False) -> tuple[Split, Split]:
    """Return the training and the test split, images [N, S, S] or [N, S, S, C] uint8 and labels [N] int64.

    Args:
        name: the class of `torchvision.datasets`.
        root: the folder that holds, or is to hold, what the class calls its own folder.

    Raises:
        RuntimeError: they are not there, or not whole.
        OSError: they cannot be read or downloaded.
    """
    with tempfile.TemporaryDirectory(prefix="images-") as folder:
        out = Path(folder) / "images.npz"
        command = [sys.executable, "-P", "-m", "trainer.data", name, str(root), str(out)]
        done = subprocess.run(
            [*command, "--download"] if download else command,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            env=os.environ | {"PYTHONPATH": machine.python_path()},
            check=False,
        )
        if done.returncode:
            _raise(done.stdout, done.returncode)
        with np.load(out) as arrays:
            train, test = ((arrays[f"{split}_images"], arrays[f"{split}_labels"]) for split in ("train", "test"))
    return train, test


def _raise(said: str, code: int) -> None:
    """Raise what the process has said; torchvision itself may have printed before."""
    try:
        found = json.loads(said.splitlines()[-1])
    except (IndexError, ValueError):
        raise OSError(f"the process that reads them ended with exit code {code}") from None
    if "absent" in found:
        raise RuntimeError(found["absent"])
    raise OSError(found["failed"])
