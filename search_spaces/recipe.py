"""The fixed hyperparameters. A recipe is part of every trial's identity, so it must not drift."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from search_spaces.errors import Problem
from search_spaces.validation import Integer, Number, check, validate

PRECISIONS = ("fp32", "tf32", "bf16")


@dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class Recipe:
    """Every hyperparameter that all trials of a table share.

    The rest is pinned, and raising `search_spaces.trial.PROTOCOL` is the only way to change it: SGD without
    Nesterov; weight decay on all parameters; cross-entropy; the last partial batch is kept; cosine
    annealing stepped once an epoch (`trainer.train.learning_rate`); RandomCrop(32, padding=4) on black, and a
    horizontal flip where the dataset has one; batch norm as torchvision sets it.

    Every value is checked as it is made: pydantic's ValidationError names every field out of its range.

    Attributes:
        batch_size: images a step; two at least, since batch norm has no variance over one image at 1x1; 8,192 at most,
            since kernels count the elements of a map in 32 bits, and an image's have up to 147,456 in MobileNetV2.
        weight_decay: the L2 penalty on every parameter.
        precision: `fp32`, `tf32` (CUDA matrix products and convolutions in TF32), or `bf16` (autocast).
        train_samples, test_samples: the first N of a fixed shuffle; None is all.
    """

    epochs: Annotated[Integer, Field(ge=1, lt=10**6)] = 200
    batch_size: Annotated[Integer, Field(ge=2, le=8192)] = 128
    lr: Annotated[Number, Field(gt=0)] = 0.1
    momentum: Annotated[Number, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[Number, Field(ge=0)] = 5e-4
    precision: Annotated[str, check(PRECISIONS.__contains__, f"one of {', '.join(PRECISIONS)}")] = "fp32"
    train_samples: Annotated[Integer, Field(ge=2, lt=2**53)] | None = None
    test_samples: Annotated[Integer, Field(ge=1, lt=2**53)] | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Recipe:
        """Return the recipe of plain data, with defaults for the rest; raise a RequestError with every problem."""
        return validate(cls, values, {"": cls})

    def to_json(self) -> str:
        """Return the canonical JSON, by which recipes are compared."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    def problems_with(self, train_images: int) -> list[Problem]:
        """Return what is wrong with this recipe for a training set of that many images."""
        n = min(self.train_samples or train_images, train_images)
        what = (
            f"{n} training images in batches of {self.batch_size} leave a last batch of one image, over which batch "
            f"norm has no variance; change batch_size or train_samples by one"
        )
        return [Problem("batch_size", what)] if n % self.batch_size == 1 else []
