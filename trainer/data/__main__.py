"""`python -m trainer.data CLASS ROOT [OUT]`: images as torchvision has them in ROOT, as arrays in OUT; or downloaded.

Where it cannot, the last line that it prints says why.
"""

from __future__ import annotations

import sys

import numpy as np

from search_spaces.errors import first_line
from trainer.compat import import_torchvision

import_torchvision()

import torchvision.datasets  # noqa: E402


def main(name: str, root: str, out: str | None = None) -> int:
    arrays: dict[str, np.ndarray] = {}
    try:
        for split in ("train", "test"):
            found = getattr(torchvision.datasets, name)(root, train=split == "train", download=out is None)
            images = np.asarray(found.data)
            arrays[f"{split}_images"] = images.reshape(*images.shape[:3], -1)  # grey ones have no axis of channels
            arrays[f"{split}_labels"] = np.asarray(found.targets, np.int64)
    except Exception as error:  # of damaged files torchvision raises what its parts raise
        print(first_line(error))
        return 1
    if out:
        np.savez(out, **arrays)  # pyright: ignore[reportArgumentType]
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
