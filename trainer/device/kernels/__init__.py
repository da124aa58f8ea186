"""Triton kernels: one operation a file, for maps that are channels-last. They run on a GPU only."""

from search_spaces.kernels import off
from trainer.device.kernels import (
    basic_block,
    convolution,
    crops,
    depthwise,
    inverted_residual,
    loss,
    norm,
    sgd,
    stem,
)

__all__ = [
    "basic_block",
    "convolution",
    "crops",
    "depthwise",
    "inverted_residual",
    "loss",
    "norm",
    "off",
    "sgd",
    "stem",
]
