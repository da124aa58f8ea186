"""Augmentation as one gather a batch: RandomCrop(32, padding=4), horizontal flip, normalisation.

The same distribution as torchvision's transforms on PIL images, at some 290,000 images/s on two CPU cores where those
make 5,900 on one, so that no DataLoader is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.data import PAD, SIZE
from trainer.randomness import Purpose, generator


@dataclass(frozen=True, slots=True)
class EpochDraws:
    """Every random choice of one epoch, drawn up front: [N] each, in the order in which images are seen.

    Attributes:
        order: which image, an index into the training subset.
        top, left: where the 32x32 window starts in the padded 40x40 image, 0..8.
        flip: whether its columns run backwards.
    """

    order: Tensor
    top: Tensor
    left: Tensor
    flip: Tensor

    @classmethod
    def of(cls, seed: int, epoch: int, images: int, flip: bool, device: torch.device) -> EpochDraws:
        """The draws of `epoch` (from 1), the same on every device. `flip` False leaves every image as it is."""
        draws = generator(seed, Purpose.BATCHES, epoch)
        order = draws.permutation(images)
        top, left = draws.integers(0, 2 * PAD + 1, size=(2, images))
        flipped = draws.random(images) < (0.5 if flip else 0.0)
        return cls(*(torch.from_numpy(array).to(device) for array in (order, top, left, flipped)))


class Augment:
    """Padded bytes to normalised crops.

    Args:
        images: [N, 40, 40, C] uint8, on the device that trains.
        mean, std: [C] per channel, for pixels in [0, 1].
    """

    def __init__(self, images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]):
        self._pixels = images.view(-1, images.shape[-1])
        self._row = images.shape[2]
        self._image = images.shape[1] * images.shape[2]
        self._window = torch.arange(SIZE, device=images.device)
        self._normalise = Normalise(mean, std, images.device)

    def __call__(self, index: Tensor, top: Tensor, left: Tensor, flip: Tensor) -> Tensor:
        """[B] each -> [B, 3, 32, 32] float32, channels last in memory."""
        rows = top[:, None] + self._window
        columns = left[:, None] + torch.where(flip[:, None], SIZE - 1 - self._window, self._window)
        # One flat index over pixels: index_select is 2.3 times faster than indexing three dimensions.
        pixels = (index * self._image)[:, None, None] + (rows * self._row)[:, :, None] + columns[:, None, :]
        crops = self._pixels.index_select(0, pixels.flatten()).view(len(index), SIZE, SIZE, -1)
        return self._normalise(crops)


class Normalise:
    """[B, H, W, C] uint8 -> [B, 3, H, W] float32, (x/255 - mean)/std, channels last; grey is repeated to 3."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device):
        self._shift = torch.tensor(mean, device=device) * 255
        self._scale = 1 / (torch.tensor(std, device=device) * 255)

    def __call__(self, images: Tensor) -> Tensor:
        normal = images.float().sub_(self._shift).mul_(self._scale)
        return normal.expand(-1, -1, -1, 3).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
