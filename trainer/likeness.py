"""Which function a pool computes, as far as its outputs tell: for finding pools that are one and the same."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer.examination import TOLERANCE
from trainer.randomness import Purpose, seeded
from trainer.subject import Subject

CHANNELS = 16  # of each map, evenly spread
STEP = 0.1


def outputs(subject: Subject) -> list[float]:
    """Samples of the function at initialisation: the same maps, channels and random numbers for every pool."""
    found = _function(subject.build(), subject)
    chosen = torch.linspace(0, subject.shape[0] - 1, CHANNELS).long()
    return found[..., chosen].flatten().tolist()


def parting(subject: Subject) -> list[str]:
    """The parameters that change the function when they change.

    By a step in a random direction: the gradient is zero at many a point from where learning starts.
    """
    before = _function(subject.build(), subject)
    names = [name for name, _ in subject.build().named_parameters()]
    return [name for name in names if not torch.allclose(before, _moved(subject, name), TOLERANCE, TOLERANCE)]


def _moved(subject: Subject, name: str) -> Tensor:
    module = subject.build()
    parameter = module.get_parameter(name)
    direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        parameter.add_(STEP * (1 + parameter.abs()) * direction)
    return _function(module, subject)


def _function(module: nn.Module, subject: Subject) -> Tensor:
    """[evaluation and training, B, C]."""
    found = []
    for training in (False, True):
        with torch.no_grad(), seeded(0, Purpose.NOISE):
            found.append(module.train(training)(subject.maps()))
    return torch.stack(found).nan_to_num()
