"""The three published networks, against a program that knows nothing of ours.

Written from what the benchmark's authors say of it, with torch.nn alone. It shares with the trainer the batches and the
initial weights, which it takes in the order in which its own layers want them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from search_spaces import pool
from search_spaces.recipe import Recipe
from search_spaces.trial import Trial
from tests.compare import numbers
from tests.pool_files import written
from trainer.augment import Images, epoch_draws
from trainer.data import PAD, SIZE, Dataset
from trainer.train import Program, learning_rate, train

CPU = torch.device("cpu")
# Powers of two, which the trainer's float32 learning rate holds exactly: cosine over two epochs halves it after one.
RECIPE = Recipe(epochs=2, batch_size=4, lr=2**-6, weight_decay=2**-5, train_samples=12, test_samples=4)


def conv_bn(channels_in: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(channels)]


class Residual(nn.Module):
    """`inner(x) + shortcut(x)`, and ReLU after it if `relu`."""

    def __init__(self, inner: nn.Module, shortcut: nn.Module, *, relu: bool):
        super().__init__()
        self.inner, self.shortcut, self.relu = inner, shortcut, relu

    def forward(self, x: Tensor) -> Tensor:
        total = self.inner(x) + self.shortcut(x)
        return total.relu() if self.relu else total


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def resnet56() -> nn.Module:
    layers = [*conv_bn(3, 16, 3), nn.ReLU()]
    channels = 16
    for width, first in ((16, 1), (32, 2), (64, 2)):
        for stride in [first] + [1] * 8:
            inner = nn.Sequential(*conv_bn(channels, width, 3, stride), nn.ReLU(), *conv_bn(width, width, 3))
            same = stride == 1 and channels == width
            shortcut = nn.Identity() if same else nn.Sequential(*conv_bn(channels, width, 1, stride))
            layers.append(Residual(inner, shortcut, relu=True))
            channels = width
    return nn.Sequential(*layers, Mean(), nn.Linear(64, 100))


def vgg16bn() -> nn.Module:
    layers: list[nn.Module] = []
    channels = 3
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            layers += [*conv_bn(channels, width, 3), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2, 2))
    head = [nn.Linear(512, 512), nn.ReLU(), nn.Dropout(0.0), nn.Linear(512, 100)]  # at 0.5 no two programs draw alike
    return nn.Sequential(*layers, Mean(), *head)


def mobilenetv2() -> nn.Module:
    layers = [*conv_bn(3, 32, 3), nn.ReLU6()]
    channels = 32
    stages = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expansion, width, blocks, first in stages:
        for stride in [first] + [1] * (blocks - 1):
            hidden = channels * expansion
            wide = [*conv_bn(channels, hidden, 1), nn.ReLU6()] if expansion > 1 else []
            depthwise = [*conv_bn(hidden, hidden, 3, stride, groups=hidden), nn.ReLU6()]
            inner = nn.Sequential(*wide, *depthwise, *conv_bn(hidden, width, 1))
            joins = stride == 1 and channels == width
            layers.append(Residual(inner, nn.Identity(), relu=False) if joins else inner)
            channels = width
    return nn.Sequential(*layers, *conv_bn(320, 1280, 1), nn.ReLU6(), Mean(), nn.Linear(1280, 100))


@pytest.fixture(scope="module")
def images() -> Dataset:
    """Random bytes in the shape of CIFAR-100."""
    draws = np.random.default_rng(0)
    train, test = (draws.integers(0, 256, (n, s, s, 3), np.uint8) for n, s in ((24, SIZE + 2 * PAD), (8, SIZE)))
    labels = draws.integers(0, 100, 32)
    return Dataset("random", 100, True, train, labels[:24], test, labels[24:], (0.5,) * 3, (0.29,) * 3)


SLOW = (vgg16bn, mobilenetv2)


@pytest.mark.parametrize("plain", [resnet56, *(pytest.param(plain, marks=pytest.mark.soak) for plain in SLOW)])
def test_the_first_six_steps_are_those_of_a_plain_program(plain: Callable[[], nn.Module], images: Dataset) -> None:
    """In float64: batch norm multiplies float32's rounding by ten thousand within six steps of a deep network."""
    program = Program(Trial(pool.expand("gap")[0], plain.__name__, "cifar100", 1, RECIPE), Images(images, CPU))
    for layer in program.network.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    program.network.double().train()
    program.optimizer.momenta = [buffer.double() for buffer in program.optimizer.momenta]
    theirs = plain().double().train()
    with torch.no_grad():
        for mine, ours in zip(theirs.parameters(), program.network.parameters(), strict=True):
            assert mine.shape == ours.shape
            mine.copy_(ours)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=2**-6, momentum=0.9, weight_decay=2**-5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=2)
    losses: list[tuple[float, float]] = []
    for epoch in (1, 2):
        program.lr.fill_(learning_rate(RECIPE, epoch - 1))
        for batch, labels in batches(program, epoch):
            loss, _ = program.step(batch, labels)
            optimizer.zero_grad()
            reference = nn.functional.cross_entropy(theirs(batch.contiguous()), labels)
            reference.backward()
            optimizer.step()
            losses.append((loss.item() / len(labels), reference.item()))
        schedule.step()
    ours, plains = zip(*losses, strict=True)
    assert len(losses) == 6
    assert len(set(ours)) == 6
    assert ours == pytest.approx(plains, rel=1e-5)


def batches(program: Program, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    draws = epoch_draws(program.trial.seed, epoch, np.arange(12), flip=True)
    for part in draws.split(RECIPE.batch_size):
        yield program.images.crops(part).double(), program.images.train_labels[part[:, 0]]


# Dropout: masks of the trial's own


def vgg(seed: int = 1, spec: str = "gap") -> Trial:
    recipe = Recipe(epochs=2, batch_size=8, lr=0.01, train_samples=20, test_samples=8)  # the last batch has 4
    return Trial(pool.expand(spec)[0], "vgg11bn", "cifar100", seed, recipe)


def masks(trial: Trial, data: Dataset) -> list[Tensor]:
    """What its head's dropout keeps, step by step."""
    program, found = Program(trial, Images(data, CPU)), list[Tensor]()
    (layer,) = (layer for layer in program.network.modules() if isinstance(layer, nn.Dropout))

    def watch(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if layer.training:
            ones = torch.ones_like(inputs[0])
            kept = torch.where(inputs[0] == 0, ones, output / inputs[0])  # of what ReLU left of it
            found.append(torch.where(inputs[0] == 0, ones * math.nan, kept))
        else:
            assert torch.equal(output, inputs[0])

    layer.register_forward_hook(watch)
    list(train(program))
    return found


def test_masks_are_new_at_every_step_and_follow_from_the_seed_alone(images: Dataset) -> None:
    first, again, other = masks(vgg(), images), masks(vgg(), images), masks(vgg(seed=2), images)
    assert [len(mask) for mask in first] == [8, 8, 4] * 2
    for one, two in zip(first, again, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0, equal_nan=True)
    for one, two in itertools.combinations([*first, *other], 2):
        rows = min(len(one), len(two))
        both = ~(one[:rows].isnan() | two[:rows].isnan())
        assert 0.3 < (one[:rows][both] == two[:rows][both]).float().mean() < 0.7
    values = torch.cat([mask[~mask.isnan()] for mask in first])
    assert set(values.round(decimals=4).tolist()) == {0.0, 2.0}
    assert 0.45 < (values > 0).float().mean() < 0.55


def test_a_pool_that_draws_moves_no_mask(tmp_path: Path, images: Dataset) -> None:
    """At one position both pools are the average: with the same masks, the same losses to the last digit."""
    draws = written(tmp_path, "draws", "return x.mean((2, 3)) + 0 * torch.rand(7, device=x.device).sum()")
    first, noisy, again = (
        numbers(train(Program(vgg(spec=spec), Images(images, CPU)))) for spec in ("gap", draws, "gap")
    )
    assert first == again
    assert first == noisy
