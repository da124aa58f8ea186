"""Log-sum-exp pooling: y_c = (1/r) log(mean over positions of exp(r x_c)), with a fixed r.

Pinheiro and Collobert, From Image-level to Pixel-level Labeling with Convolutional Networks (CVPR 2015). r to 0 is the
average, r to infinity the maximum. How sharp it is depends on the scale of the activations: r x has to be of order one.
"""

import torch
from torch import Tensor, nn

from trainer.pools._power import log_mean_exp


class LogSumExpPool(nn.Module):
    """[B, C, H, W] -> [B, C]: a smooth maximum of each channel. No parameters.

    Args:
        r: the sharpness, any number but 0; below 0 it is a smooth minimum. 10 was the best in Wang et al., ChestX-ray8
            (CVPR 2017).
    """

    def __init__(self, r: float = 10.0):
        super().__init__()
        if r == 0:
            raise ValueError(f"r must not be 0 (its limit there is the pool gap), got {r}")
        self.r = r

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return (log_mean_exp(self.r * x.float().flatten(2)) / self.r).to(x.dtype)
