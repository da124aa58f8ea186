"""Top-k pooling: y_c = mean of the k largest of x_c + alpha * mean of the k_min smallest.

Durand, Mordan, Thome and Cord, WILDCAT: Weakly Supervised Learning of Deep ConvNets for Image Classification, Pointwise
Localization and Segmentation (CVPR 2017), there over class maps. With k_min above 0 and alpha above 0 a constant map
comes out larger than it is. Of equal values at the border of the k, which ones get the gradient is arbitrary.
"""

from torch import Tensor, nn

from trainer.pools._checks import whole


class TopKPool(nn.Module):
    """[B, C, H, W] -> [B, C]: the mean of the largest values of each channel, and if asked, of the smallest.

    Args:
        k: how many of the largest, from 1 up; all of them where the map has fewer. 4 of 64 positions is the
            choice here: the paper takes a share of the map.
        k_min: how many of the smallest, from 0 up; 0 leaves them out.
        alpha: the weight of the smallest, from 0 up; 0.7 in the paper.
    """

    def __init__(self, k: int = 4, k_min: int = 0, alpha: float = 0.7):
        super().__init__()
        if alpha < 0:
            raise ValueError(f"alpha must be from 0 up, got {alpha}")
        self.k = whole("k", k)
        self.k_min = whole("k_min", k_min, least=0)
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        positions = flat.shape[2]
        largest = flat.topk(min(self.k, positions), dim=2).values.mean(dim=2)
        if self.k_min == 0:
            return largest
        smallest = flat.topk(min(self.k_min, positions), dim=2, largest=False).values.mean(dim=2)
        return largest + self.alpha * smallest
