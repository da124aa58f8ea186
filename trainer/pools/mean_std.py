"""Statistics pooling: y = W [mean(x), sqrt(var(x) + eps)] + b, mean and variance of each channel over positions.

Snyder, Garcia-Romero, Povey and Khudanpur, Deep Neural Network Embeddings for Text-Independent Speaker Verification
(Interspeech 2017), where both go on to the next layer; here a learned layer brings them back to C. At 1x1 the variance
is 0, and half of W learns a second bias.
"""

import torch
from torch import Tensor, nn

from trainer.pools._checks import positive


class MeanStdPool(nn.Module):
    """[B, C, H, W] -> [B, C]: a linear layer over the means and the standard deviations of all channels.

    Has 3.3 million parameters at C = 1280.

    Args:
        eps: what is added to the variance, above 0: the gradient of a root at zero is infinite. 1e-5 as in torch's
            normalisations.
    """

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.project = nn.Linear(2 * channels, channels)
        self.eps = positive("eps", eps)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            variance, mean = torch.var_mean(x.float(), dim=(2, 3), correction=0)
            statistics = torch.cat([mean, (variance + self.eps).sqrt()], dim=1)
        return self.project(statistics).to(x.dtype)
