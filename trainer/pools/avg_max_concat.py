"""Average and maximum, concatenated and projected: y = W [mean(x), max(x)] + b.

The concatenation is fastai's (Howard and Gugger, fastai: A Layered API for Deep Learning, Information 2020), where it
doubles the input of the classifier; here a learned layer brings it back to C. At 1x1 both halves are the same.
"""

import torch
from torch import Tensor, nn


class AverageMaxConcatPool(nn.Module):
    """[B, C, H, W] -> [B, C]: a linear layer over all means and maxima, 3.3 million parameters at C = 1280."""

    def __init__(self, channels: int):
        super().__init__()
        self.project = nn.Linear(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1)).to(x.dtype)
