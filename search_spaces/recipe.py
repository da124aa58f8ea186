"""The fixed hyperparameters. A recipe is part of every trial's identity, so nothing in it may drift."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from search_spaces.errors import Problem, RequestError, did_you_mean, meant_number, short

PRECISIONS = ("fp32", "tf32", "bf16")


@dataclass(frozen=True, slots=True)
class Recipe:
    """Every hyperparameter that all trials of a table share.

    The rest is pinned, and raising `search_spaces.trial.PROTOCOL` is the only way to change it: SGD without
    Nesterov; weight decay on all parameters; cross-entropy; the last partial batch is kept; cosine
    annealing stepped once an epoch (`lr_after`); RandomCrop(32, padding=4) on black, and a horizontal
    flip where the dataset has one; batch norm as torchvision sets it.

    Attributes:
        epochs: passes over the training set, >= 1.
        batch_size: images a step, >= 2 (batch norm has no variance over one image at 1x1).
        lr: the initial learning rate, > 0.
        momentum: of SGD, in [0, 1).
        weight_decay: L2 penalty on every parameter, >= 0.
        precision: `fp32`, `tf32` (CUDA matrix products and convolutions in TF32), or `bf16` (autocast).
        train_samples, test_samples: the first N of a fixed shuffle; None is all.

    Raises:
        RequestError: naming every field that is out of its range.
    """

    epochs: int = 200
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    precision: str = "fp32"
    train_samples: int | None = None
    test_samples: int | None = None

    def __post_init__(self) -> None:
        for name in ("lr", "momentum", "weight_decay"):
            value = getattr(self, name)
            if type(value) is int and abs(value) < 2**53:  # `lr: 1` and `lr: 1.0` are one recipe, so one id
                object.__setattr__(self, name, float(value))
        problems = [
            *_number(self, "epochs", int, at_least=1, below=10**6),
            *_number(self, "batch_size", int, at_least=2, below=10**6),
            *_number(self, "lr", float, above=0.0),
            *_number(self, "momentum", float, at_least=0.0, below=1.0),
            *_number(self, "weight_decay", float, at_least=0.0),
            *_number(self, "train_samples", int, at_least=2, below=2**53, optional=True),
            *_number(self, "test_samples", int, at_least=1, below=2**53, optional=True),
        ]
        if self.precision not in PRECISIONS:
            problems.append(
                Problem("precision", f"found {short(self.precision)}, allowed is one of {', '.join(PRECISIONS)}")
            )
        if problems:
            raise RequestError(problems)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Recipe:
        """A recipe from plain data; the defaults stand for what is not given.

        Raises:
            RequestError: naming every unknown key and every value out of range.
        """
        fields = [field.name for field in dataclasses.fields(cls)]
        problems = [
            Problem(str(key), f"unknown key; {did_you_mean(key, fields)}") for key in values if key not in fields
        ]
        try:
            recipe = cls(**{key: value for key, value in values.items() if key in fields})
        except RequestError as error:
            raise RequestError([*problems, *error.problems]) from None
        if problems:
            raise RequestError(problems)
        return recipe

    def to_json(self) -> str:
        """The canonical spelling, by which recipes are compared."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    def lr_after(self, epoch: int) -> float:
        """The learning rate once `epoch` epochs (0..epochs) are done: lr/2 (1 + cos(pi e/E)).

        Epoch e (from 1) trains at `lr_after(e - 1)`; the log shows `lr_after(e)`, as the benchmark's does
        (0.009549 after epoch 160 of 200). SGDR without restarts (Loshchilov and Hutter, 2017).
        """
        return self.lr / 2 * (1 + math.cos(math.pi * epoch / self.epochs))

    def problems_with(self, train_images: int) -> list[Problem]:
        """What keeps this recipe from a training set of that many images."""
        n = min(self.train_samples or train_images, train_images)
        if n % self.batch_size != 1:
            return []
        return [
            Problem(
                "batch_size",
                f"{n} training images in batches of {self.batch_size} leave a last batch of one image, over which "
                f"batch norm has no variance; change batch_size or train_samples by one",
            )
        ]


def _number(
    recipe: Recipe,
    name: str,
    kind: type,
    *,
    at_least: float = -math.inf,
    above: float = -math.inf,
    below: float = math.inf,  # NaN and infinity are in no range
    optional: bool = False,
) -> list[Problem]:
    value = getattr(recipe, name)
    if optional and value is None:
        return []
    if type(value) is kind and value >= at_least and above < value < below:
        return []
    bounds = [
        f">= {at_least:g}" if at_least > -math.inf else "",
        f"> {above:g}" if above > -math.inf else "",
        f"< {below:g}" if below < math.inf else "",
    ]
    noun = "an integer" if kind is int else "a number"
    allowed = f"{noun} {' and '.join(filter(None, bounds))}".strip() + (", or null for all" if optional else "")
    return [Problem(name, f"found {short(value)}, allowed is {allowed}{meant_number(value)}")]
