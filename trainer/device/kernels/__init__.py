"""Triton kernels: one operation a file, for maps that are channels-last. They run on a GPU only."""

from trainer.device.kernels import convolution, crops, depthwise, norm

__all__ = ["convolution", "crops", "depthwise", "norm"]
