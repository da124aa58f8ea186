"""Average plus max: y_c = (1 - w) mean(x_c) + w max(x_c), with a fixed w.

The fixed form of mixed pooling: Lee, Gallagher and Tu, Generalizing Pooling Functions in Convolutional Neural Networks
(AISTATS 2016).
"""

from torch import Tensor, nn


class AverageMaxPool(nn.Module):
    """[B, C, H, W] -> [B, C]: a fixed blend of the mean and the maximum of each channel.

    Args:
        weight: w, the share of the maximum, in [0, 1]; 0.5 is the benchmark's 0.5 * (avg + max).
    """

    def __init__(self, weight: float = 0.5):
        super().__init__()
        if not 0 <= weight <= 1:
            raise ValueError(f"weight must be in [0, 1], got {weight}")
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        return (1 - self.weight) * x.mean(dim=(2, 3)) + self.weight * x.amax(dim=(2, 3))
