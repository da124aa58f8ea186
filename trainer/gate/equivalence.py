"""Which function a pool computes, as far as its outputs tell: for finding pools that are one and the same."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from trainer.gate.case import Case
from trainer.gate.report import TOLERANCE
from trainer.randomness import Purpose, seeded

CHANNELS = 16  # of each map, evenly spread
STEP = 0.1


def function(case: Case) -> tuple[list[float], list[str]]:
    """Return samples of the function at initialisation, and the parameters that change it when they change.

    The samples are of the same maps, channels and random numbers for every pool. The parameters take a step in a random
    direction: the gradient is zero at many a point from where learning starts.
    """
    module = case.build()
    found = _function(module, case)
    chosen = torch.linspace(0, case.shape[0] - 1, CHANNELS).long()
    names = [name for name, _ in module.named_parameters()]
    parting = [name for name in names if not torch.allclose(found, _moved(case, name), TOLERANCE, TOLERANCE)]
    return found[..., chosen].flatten().tolist(), parting


def _moved(case: Case, name: str) -> Tensor:
    module = case.build()
    parameter = dict(module.named_parameters())[name]  # of a scripted module it is a tensor, and get_parameter refuses
    direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        parameter.add_(STEP * (1 + parameter.abs()) * direction)
    return _function(module, case)


def _function(module: nn.Module, case: Case) -> Tensor:
    """[evaluation and training, B, C], and the same of large maps, where what is clamped at 1 is no average."""
    found = []
    for kind, training in itertools.product(("random", "large"), (False, True)):
        with torch.no_grad(), seeded(0, Purpose.NOISE):
            found.append(module.train(training)(case.maps(kind)))
    return torch.stack(found).nan_to_num()
