"""Pools in files of their own, as users write them."""

from __future__ import annotations

import textwrap
from pathlib import Path

IMPORTS = "import random\nimport numpy as np\nimport torch\nfrom torch import nn\n"


def written(folder: Path, name: str, forward: str, init: str = "pass") -> str:
    """Write a file with these bodies of `forward(self, x)` and `__init__(self, channels)`; return its path."""
    init, forward = (textwrap.indent(body, " " * 8) for body in (init, forward))
    head = "class CustomPool(nn.Module):\n    def __init__(self, channels):\n        super().__init__()\n"
    text = f"{IMPORTS}{head}{init}\n    def forward(self, x):\n{forward}\n"
    (folder / f"{name}.py").write_text(text)
    return str(folder / f"{name}.py")


def noisy(folder: Path) -> str:
    """Write a pool that draws from each of the host's generators, in eval too; return its path."""
    noise = "noise = 1 + 0.1 * np.random.rand() + 0.1 * random.random()\n"
    forward = noise + "return nn.functional.dropout(self.dropout(x.mean((2, 3))), 0.1) * noise"
    return written(folder, "noisy", forward, init="self.dropout = nn.Dropout(0.5)")
