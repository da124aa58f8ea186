"""The plain PyTorch training loop that the trainer is measured, and tested, against.

What a careful person writes first: PIL images through torchvision's transforms in a DataLoader, torch.optim.SGD,
torch's cosine schedule, the default memory layout, one `.item()` a step.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision import transforms

from search_spaces.recipe import Recipe
from trainer.data import PAD, SIZE, Dataset
from trainer.device.execution import set_matmul_precision


class PlainTrainer:
    """A network in the default layout, with torch's own optimizer and schedule."""

    def __init__(self, network: nn.Module, recipe: Recipe, device: torch.device):
        self.network = network.to(device)
        self.device = device
        self.precision = recipe.precision
        set_matmul_precision(recipe.precision)  # torch's own default takes tf32 for some of fp32
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=recipe.epochs)

    def step(self, images: Tensor, labels: Tensor) -> float:
        """One SGD step on [B, 3, 32, 32] and [B]; the mean loss."""
        images, labels = images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
        with self._autocast():
            loss = F.cross_entropy(self.network(images), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def run_epoch(self, train: Iterable[tuple[Tensor, Tensor]], test: Iterable[tuple[Tensor, Tensor]]) -> float:
        """Trains for an epoch and evaluates; the test accuracy in percent."""
        self.network.train()
        for images, labels in train:
            self.step(images, labels)
        self.schedule.step()
        self.network.eval()
        hits = total = 0
        with torch.no_grad():
            for images, labels in test:
                with self._autocast():
                    logits = self.network(images.to(self.device))
                hits += (logits.argmax(1).cpu() == labels).sum().item()
                total += len(labels)
        return 100 * hits / total


def loaders(data: Dataset, recipe: Recipe, workers: int) -> tuple[DataLoader, DataLoader]:
    """Training and test batches of a dataset, the first `train_samples` and `test_samples` of it."""
    normalise = [transforms.ToTensor(), transforms.Normalize(_three(data.mean), _three(data.std))]
    crop = [transforms.RandomCrop(SIZE, padding=PAD)] + [transforms.RandomHorizontalFlip()] * data.flip
    inner = data.train_images[: recipe.train_samples, PAD : PAD + SIZE, PAD : PAD + SIZE]
    train = _Images(inner, data.train_labels, transforms.Compose([*crop, *normalise]))
    test = _Images(data.test_images[: recipe.test_samples], data.test_labels, transforms.Compose(normalise))
    kept = {"num_workers": workers, "persistent_workers": workers > 0, "batch_size": recipe.batch_size}
    return DataLoader(train, shuffle=True, **kept), DataLoader(test, **kept)


class _Images(TorchDataset):
    def __init__(self, images, labels, transform: transforms.Compose):
        self.images = [Image.fromarray(image.squeeze()).convert("RGB") for image in images]
        self.labels = labels
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(self.images[index]), int(self.labels[index])


def _three(values: tuple[float, ...]) -> tuple[float, ...]:
    return values if len(values) == 3 else values * 3
