"""SGD with momentum as torch has it. On a GPU `trainer.device.gpu` has one that is a single kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torch.optim.sgd import sgd


class Sgd:
    """Torch's own step over the parameters of a network, which changes them and its momentum in place.

    Args:
        parameters: all that train.
        lr: a tensor beside them, so that a step never depends on a Python number.
        decay: of every parameter.

    Attributes:
        momenta: one buffer for each parameter, in their order. At rest from the start: torch.optim would make these in
            its first step, where no graph could find them again.
    """

    def __init__(self, parameters: Sequence[Tensor], lr: Tensor, momentum: float, decay: float):
        self.momenta = [torch.zeros_like(parameter) for parameter in parameters]
        self._parameters, self._lr, self._momentum, self._decay = parameters, lr, momentum, decay

    def clear(self) -> None:
        """Forget the gradients: before a backward pass."""
        for parameter in self._parameters:
            parameter.grad = None

    def step(self) -> None:
        """Take a step: after a backward pass. Parameters that the loss does not depend on stay as they are."""
        self._descend(range(len(self._parameters)))

    def follow(self) -> None:
        """Have what is kept beside the weights follow them: after somebody else has changed them."""

    def settle(self) -> None:
        """Make ready for the replay of steps that graphs have recorded."""

    def _descend(self, which: Sequence[int]) -> None:
        moved = [index for index in which if self._parameters[index].grad is not None]
        # The function and not the class, which imports all of torch.compile: 3 s in every process that trains.
        sgd(
            [self._parameters[index] for index in moved],
            [cast(Tensor, self._parameters[index].grad) for index in moved],
            [self.momenta[index] for index in moved],
            has_sparse_grad=False,
            fused=True,
            weight_decay=self._decay,
            momentum=self._momentum,
            lr=cast(float, self._lr),  # fused, it may be a tensor
            dampening=0,
            nesterov=False,
            maximize=False,
        )
