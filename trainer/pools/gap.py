"""Global average pooling: y_c = mean over positions of x_c.

Lin, Chen and Yan, Network In Network (ICLR 2014).
"""

from torch import Tensor, nn


class GlobalAveragePool(nn.Module):
    """[B, C, H, W] -> [B, C]: the mean of each channel. No parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))
