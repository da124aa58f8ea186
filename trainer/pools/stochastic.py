"""Stochastic pooling: y_c = x_c at one position, drawn with p = max(x_c, 0) / sum over positions of max(x_c, 0).

Zeiler and Fergus, Stochastic Pooling for Regularization of Deep Convolutional Neural Networks (ICLR 2013). In training
a position is drawn for each channel of each sample; in evaluation y_c is the expectation, sum over positions of p x_c.
Made for activations that are not negative; where none is positive, p is uniform.
"""

import torch
from torch import Tensor, nn

from trainer.pools._tokens import average


class StochasticPool(nn.Module):
    """[B, C, H, W] -> [B, C]: one value of each channel, drawn in training and expected otherwise. No parameters."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            flat = x.float().flatten(2)
            active = flat.relu()
            # Below 1e-12 it counts as zero: the gradient of p is of order 1 / sum.
            active = torch.where(active.sum(dim=2, keepdim=True) > 1e-12, active, torch.ones_like(active))
            if self.training:
                # The first of independent exponential clocks with rates p rings at i with probability p_i.
                # torch.multinomial would do the same, but waits for the GPU. The clamp keeps 0/0 out.
                clocks = torch.empty_like(active).exponential_().clamp_(min=1e-30)
                drawn = (active.detach() / clocks).argmax(dim=2, keepdim=True)
                return flat.gather(2, drawn).squeeze(2).to(x.dtype)
            return average(flat, active / active.sum(dim=2, keepdim=True)).to(x.dtype)
