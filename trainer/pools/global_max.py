"""Global max pooling: y_c = max over positions of x_c.

Oquab, Bottou, Laptev and Sivic, Is Object Localization for Free? (CVPR 2015).
"""

from torch import Tensor, nn


class GlobalMaxPool(nn.Module):
    """[B, C, H, W] -> [B, C]: the maximum of each channel. No parameters.

    `amax` splits the gradient evenly over ties and has a deterministic CUDA backward; `adaptive_max_pool2d`, which
    gives it to one of them, has not.
    """

    def forward(self, x: Tensor) -> Tensor:
        return x.amax(dim=(2, 3))
