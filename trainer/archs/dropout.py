"""Dropout whose masks nothing else that draws can move."""

import torch
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """Dropout that draws from a generator of its own, which whoever trains seeds anew for each epoch.

    torch's draws from the global generator, where a pool that draws as well would shift every mask after it: here two
    pools with one seed have the same masks.

    Srivastava et al., Dropout: A Simple Way to Prevent Neural Networks from Overfitting (JMLR 2014).

    Attributes:
        generator: on the device of what is dropped; None for the global one.
    """

    generator: torch.Generator | None = None

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return input
        kept = torch.empty_like(input).bernoulli_(1 - self.p, generator=self.generator)
        return input * kept.div_(1 - self.p)
