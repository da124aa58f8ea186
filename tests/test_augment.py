"""The batched gather against torchvision's transforms, image by image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional

from trainer.augment import Augment, EpochDraws, Normalise
from trainer.data import PAD, SIZE

CPU = torch.device("cpu")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def draws(seed: int = 0, epoch: int = 1, images: int = 500, flip: bool = True) -> EpochDraws:
    return EpochDraws.of(seed, epoch, images, flip, CPU)


@pytest.mark.parametrize("channels", [1, 3])
def test_equal_to_torchvision_on_pil_images(channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, SIZE, SIZE, channels), np.uint8)
    padded = np.pad(images, ((0, 0), (PAD, PAD), (PAD, PAD), (0, 0)))
    mean, std = MEAN[:channels], STD[:channels]
    drawn = draws(images=20)
    ours = Augment(torch.from_numpy(padded), mean, std)(drawn.order, drawn.top, drawn.left, drawn.flip)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    for i in range(20):
        picture = Image.fromarray(images[drawn.order[i]].squeeze()).convert("RGB")
        picture = functional.pad(picture, [PAD])  # pyright: ignore[reportArgumentType]
        picture = functional.crop(picture, int(drawn.top[i]), int(drawn.left[i]), SIZE, SIZE)
        if drawn.flip[i]:
            picture = functional.hflip(picture)
        three = (mean * 3)[:3], (std * 3)[:3]
        theirs = transforms.Normalize(*three)(transforms.ToTensor()(picture))
        torch.testing.assert_close(ours[i], theirs, rtol=1e-5, atol=1e-5)


def test_normalise_is_to_tensor_and_normalize() -> None:
    image = torch.randint(0, 256, (2, SIZE, SIZE, 3), dtype=torch.uint8)
    ours = Normalise(MEAN, STD, CPU)(image)
    theirs = transforms.Normalize(MEAN, STD)(image.permute(0, 3, 1, 2).float() / 255)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_draws_are_a_pure_function_of_seed_and_epoch() -> None:
    first, again = draws(3, 7), draws(3, 7)
    for name in ("order", "top", "left", "flip"):
        assert torch.equal(getattr(first, name), getattr(again, name))
        for other in (draws(4, 7), draws(3, 8)):
            assert not torch.equal(getattr(first, name), getattr(other, name))


def test_draws_are_what_random_crop_and_flip_draw() -> None:
    drawn = draws(images=20_000)
    assert torch.equal(drawn.order.sort().values, torch.arange(20_000))
    for offsets in (drawn.top, drawn.left):
        counts = torch.bincount(offsets)
        assert len(counts) == 2 * PAD + 1
        assert (counts - 20_000 / 9).abs().max() < 200  # 4 standard deviations
    assert abs(drawn.flip.float().mean() - 0.5) < 0.02
    assert abs(np.corrcoef(drawn.top, drawn.left)[0, 1]) < 0.03


def test_without_flips_the_order_and_the_crops_are_the_same() -> None:
    flipped, not_flipped = draws(), draws(flip=False)
    assert not not_flipped.flip.any()
    assert torch.equal(flipped.order, not_flipped.order)
    assert torch.equal(flipped.top, not_flipped.top)
