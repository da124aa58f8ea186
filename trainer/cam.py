"""Class activation maps: how much each position of the feature map says for the class that the network predicts.

With x the feature maps [C, H, W] and w the weights of the last layer, there are two kinds:

    CAM        m(pos) = sum_c w_c x_c(pos)              if the pool is the average: mean_pos m + bias is the logit
    Grad-CAM   m(pos) = relu(sum_c a_c x_c(pos)),       for every other pool:
               a_c = mean_pos of d logit / d x_c(pos)   the gradient goes through the pool

CAM is a decomposition of the logit, exact to rounding, and its values may be negative. Grad-CAM is a first-order
reading of it; of the average pool it is relu(CAM) / (H W).

Zhou et al., Learning Deep Features for Discriminative Localization (CVPR 2016). Selvaraju et al., Grad-CAM: Visual
Explanations from Deep Networks via Gradient-based Localization (ICCV 2017).

`python -m trainer.cam FOLDER` reads `asked.json`, {trial, data_dir, images, wrong}, and `weights.pt` there. It writes
`maps.npz`, or, if the request is wrong, its problems as `problems.json`.
"""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from search_spaces.errors import RequestError
from search_spaces.messages import shown_by
from search_spaces.trial import Trial
from trainer import data, network
from trainer.augment import Images
from trainer.data import Dataset
from trainer.network import Network

BATCH = 128


@dataclass(frozen=True, slots=True)
class Activations:
    """What a network looks at in N test images.

    Attributes:
        images: [N, 32, 32, C] uint8.
        labels: [N] int64.
        index: [N] int64, which images of the test set.
        predicted: [N] int64, the class with the largest logit: that of the map.
        probability: [N] float32, of that class, by the softmax.
        maps: [N, H, W] float32, in units of the logit.
        exact: whether they are CAM; Grad-CAM if not.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    index: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int64]
    probability: npt.NDArray[np.float32]
    maps: npt.NDArray[np.float32]
    exact: bool


def look(trial: Trial, weights: bytes, data: Dataset, count: int, wrong: bool = False) -> Activations:
    """Return the maps of the first `count` test images, or of the first that are misclassified. In fp32, on the CPU.

    Args:
        weights: of the trial's network, a state_dict as `torch.save` writes it.

    Raises:
        RequestError: these are no weights of this network, or no image is misclassified.
        whatever the pool raises.
    """
    net = restore(trial, weights, data.classes)
    images = Images(data, torch.device("cpu"))
    index, maps = _chosen(net, images, count, wrong)
    if not len(index):
        raise RequestError.of(f"all {len(images.test_labels)} test images are classified right; leave --wrong out")
    with torch.no_grad():
        probability, predicted = _logits(net, maps).softmax(1).max(1)
    exact = averages(net, maps)
    found = cam(net, maps, predicted) if exact else grad_cam(net, maps, predicted)
    return Activations(
        images=data.test_images[index.numpy()],
        labels=data.test_labels[index.numpy()],
        index=index.numpy(),
        predicted=predicted.numpy(),
        probability=probability.numpy(),
        maps=found.numpy(),
        exact=exact,
    )


def restore(trial: Trial, weights: bytes, classes: int) -> Network:
    """Return the trial's network as its training left it, in eval mode. Never unpickles code (`weights_only`).

    Raises:
        RequestError: these are no weights of this network.
    """
    net = network.build(trial.pool, trial.arch, classes, trial.seed)
    reason = "it is no state_dict of tensors alone"
    try:
        state = torch.load(io.BytesIO(weights), map_location="cpu", weights_only=True)
        reason = ""
        net.load_state_dict(state)
    except Exception as error:  # a cut or overwritten file raises whatever its bytes happen to mean
        reason = reason or " ".join(str(error).split())[:200]
        raise RequestError.of(f"the weights of {trial.id} do not fit its network: {reason}; train it again") from None
    return net.requires_grad_(False).eval()


def averages(net: Network, maps: Tensor) -> bool:
    """Return whether the last layer is linear, and the pool gives the average of these very maps [B, C, H, W].

    Read off the values and not the name, because the identity of CAM needs no more: `gem(p=1)` and a user's own mean
    have it as well, and at 1x1 every pool that gives one position back as it is. It must hold on random maps too: of
    the zeros that a dead network makes, every pool is the average.
    """
    random = torch.rand(maps.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return isinstance(net.head, nn.Linear) and all(
            torch.allclose(net.pool(given * 1), given.mean((2, 3)), rtol=1e-4, atol=1e-5) for given in (maps, random)
        )


def cam(net: Network, maps: Tensor, classes: Tensor) -> Tensor:
    """Return the class activation maps [B, H, W] of `classes` [B] in feature maps [B, C, H, W]."""
    return torch.einsum("bc,bchw->bhw", net.head.get_parameter("weight").detach()[classes], maps)


def grad_cam(net: Network, maps: Tensor, classes: Tensor) -> Tensor:
    """Return the gradient-weighted class activation maps [B, H, W] of `classes` [B] in feature maps [B, C, H, W]."""
    inputs = maps.detach().clone().requires_grad_()
    logits = _logits(net, inputs).gather(1, classes[:, None])
    (gradient,) = torch.autograd.grad(logits.sum(), inputs)  # no image has a part in another's logit
    return torch.einsum("bc,bchw->bhw", gradient.mean((2, 3)), maps).relu()


def _logits(net: Network, maps: Tensor) -> Tensor:
    return net.head(net.pool(maps * 1))  # a pool may write into what it is given


@torch.no_grad()
def _chosen(net: Network, images: Images, count: int, wrong: bool) -> tuple[Tensor, Tensor]:
    """Return which test images [N], and their feature maps [N, C, H, W]."""
    index, maps = [], []
    for batch in torch.arange(len(images.test_labels)).split(BATCH):
        features = net.features(images.test(batch))
        if wrong:
            keep = _logits(net, features).argmax(1) != images.test_labels[batch]
            batch, features = batch[keep], features[keep]
        index.append(batch)
        maps.append(features)
        if sum(map(len, index)) >= count:
            break
    return torch.cat(index)[:count], torch.cat(maps)[:count]


def main(folder: Path) -> None:
    asked = json.loads((folder / "asked.json").read_text(encoding="utf-8"))
    trial, data_dir = Trial.from_dict(asked["trial"]), Path(asked["data_dir"])
    try:
        dataset = data.load(trial.dataset, data_dir, download=False)
        weights = (folder / "weights.pt").read_bytes()
        seen = look(trial, weights, dataset, asked["images"], asked["wrong"])
    except RequestError as error:
        problems = [dataclasses.asdict(problem) for problem in error.problems]
        (folder / "problems.json").write_text(json.dumps(problems), encoding="utf-8")
        return
    names = np.array(data.class_names(trial.dataset, data_dir) or [], str)
    np.savez(folder / "maps.npz", names=names, **dataclasses.asdict(seen))


if __name__ == "__main__":
    with shown_by(print):
        main(Path(sys.argv[1]))
