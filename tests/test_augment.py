"""The batched gather against torchvision's transforms, image by image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional

from trainer.augment import FLIP, INDEX, LEFT, TOP, Images, epoch_draws
from trainer.data import PAD, SIZE, Dataset

CPU = torch.device("cpu")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def draws(seed: int = 0, epoch: int = 1, images: int = 500, flip: bool = True) -> torch.Tensor:
    return epoch_draws(seed, epoch, np.arange(images), flip)


def on_cpu(train: np.ndarray, test: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> Images:
    labels = [np.zeros(len(images), np.int64) for images in (train, test)]
    return Images(Dataset("random", 10, True, train, labels[0], test, labels[1], mean, std), CPU)


@pytest.mark.parametrize("channels", [1, 3])
def test_equal_to_torchvision_on_pil_images(channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, SIZE, SIZE, channels), np.uint8)
    padded = np.pad(images, ((0, 0), (PAD, PAD), (PAD, PAD), (0, 0)))
    mean, std = MEAN[:channels], STD[:channels]
    drawn = draws(images=20)
    data = on_cpu(padded, images, mean, std)
    ours, tested = data.crops(drawn), data.test(torch.arange(20))
    assert ours.is_contiguous(memory_format=torch.channels_last)
    for i in range(20):
        index, top, left, flip = drawn[i].tolist()
        picture = Image.fromarray(images[index].squeeze()).convert("RGB")
        picture = functional.pad(picture, [PAD])  # pyright: ignore[reportArgumentType]
        picture = functional.crop(picture, top, left, SIZE, SIZE)
        if flip:
            picture = functional.hflip(picture)
        three = (mean * 3)[:3], (std * 3)[:3]
        whole = Image.fromarray(images[i].squeeze()).convert("RGB")
        for mine, pil in ((ours[i], picture), (tested[i], whole)):
            theirs = transforms.Normalize(*three)(transforms.ToTensor()(pil))
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_draws_are_a_pure_function_of_seed_and_epoch() -> None:
    first, again = draws(3, 7), draws(3, 7)
    for column in (INDEX, TOP, LEFT, FLIP):
        assert torch.equal(first[:, column], again[:, column])
        for other in (draws(4, 7), draws(3, 8)):
            assert not torch.equal(first[:, column], other[:, column])


def test_draws_are_what_random_crop_and_flip_draw() -> None:
    drawn = draws(images=20_000)
    assert torch.equal(drawn[:, INDEX].sort().values, torch.arange(20_000))
    for offsets in (drawn[:, TOP], drawn[:, LEFT]):
        counts = torch.bincount(offsets)
        assert len(counts) == 2 * PAD + 1
        assert (counts - 20_000 / 9).abs().max() < 200  # 4 standard deviations
    assert abs(drawn[:, FLIP].float().mean() - 0.5) < 0.02
    assert abs(np.corrcoef(drawn[:, TOP], drawn[:, LEFT])[0, 1]) < 0.03


def test_without_flips_the_order_and_the_crops_are_the_same() -> None:
    flipped, not_flipped = draws(), draws(flip=False)
    assert not not_flipped[:, FLIP].any()
    assert torch.equal(flipped[:, :FLIP], not_flipped[:, :FLIP])
