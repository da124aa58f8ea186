"""Mixed pooling: y_c = (1 - s) mean(x_c) + s max(x_c), with a learned share s = sigmoid(theta).

Lee, Gallagher and Tu, Generalizing Pooling Functions in Convolutional Neural Networks (AISTATS 2016), "mixed
max-average pooling". The share is the same for every input; `gated` is the form in which it is not.
"""

import torch
from torch import Tensor, nn


class MixedPool(nn.Module):
    """[B, C, H, W] -> [B, C]: a learned blend of the mean and the maximum of each channel, one share for all.

    What is learned is theta; it starts at 0, so the share at 0.5, where `avg_max` stays.
    """

    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.lerp(x.mean(dim=(2, 3)).float(), x.amax(dim=(2, 3)).float(), self.theta.sigmoid()).to(x.dtype)
