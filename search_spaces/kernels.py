"""The kernels that train on a GPU, by family: which there are, and which of them a process does without."""

from __future__ import annotations

import os

from search_spaces.errors import require

VERSION = 2  # raised when a kernel's numbers or its speed may change, so that rows on record can be told apart
FAMILIES = (
    "crops",
    "stem",
    "norm",
    "convolution",
    "depthwise",
    "pointwise",
    "basic_block",
    "inverted_residual",
    "loss",
    "sgd",
)
SWITCH = "POOLSWEEP_KERNELS_OFF"  # an environment variable: families by commas, whose work is left to torch


def off() -> frozenset[str]:
    """Return the families that are switched off in this process.

    Raises:
        RequestError: one of them is unknown.
    """
    names = filter(None, (name.strip() for name in os.environ.get(SWITCH, "").split(",")))
    return frozenset(require("family of kernels", name, FAMILIES, SWITCH) for name in names)


def used(off: frozenset[str], *, compiled: bool = False) -> str:
    """Return what trains, for the record: `2`, `2 without norm, sgd`, or `torch.compile`, which makes its own."""
    if compiled:
        return "torch.compile"
    return " without ".join(filter(None, (str(VERSION), ", ".join(sorted(off)))))
