"""Architectures: what is pinned about them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from search_spaces import architectures, pool
from search_spaces.recipe import Recipe
from tests.pool_files import written
from trainer import network
from trainer.archs.dropout import Dropout

# {architecture: (parameters with 100 classes and average pooling, feature map)}. ResNet-56 has the 0.86M that He et al.
# report for 1x1 projections; VGG torchvision's convolutions less their biases, and 512 x 512 + 512 + 512 x 100 + 100 in
# its head.
PINNED = {
    "resnet20": (278_324, (64, 8, 8)),
    "resnet32": (472_756, (64, 8, 8)),
    "resnet44": (667_188, (64, 8, 8)),
    "resnet56": (861_620, (64, 8, 8)),
    "resnet110": (1_736_564, (64, 8, 8)),
    "vgg11bn": (9_537_188, (512, 1, 1)),
    "vgg13bn": (9_721_892, (512, 1, 1)),
    "vgg16bn": (15_032_868, (512, 1, 1)),
    "vgg19bn": (20_343_844, (512, 1, 1)),
    "mobilenetv2": (2_351_972, (1280, 4, 4)),
    "mobilenetv2_2x2": (2_351_972, (1280, 2, 2)),
    "mobilenetv2_s32": (2_351_972, (1280, 1, 1)),
}

LARGEST_BATCH = 8192


@pytest.mark.parametrize("name", architectures.ARCHS)
def test_parameters_and_feature_map(name: str) -> None:
    net = gap(name).eval()
    with torch.no_grad():
        maps = net.features(torch.randn(2, 3, 32, 32))
        assert net.head(net.pool(maps)).shape == (2, 100)
    assert (network.count_parameters(net), tuple(maps.shape[1:])) == PINNED[name]
    assert architectures.get(name).feature_map == PINNED[name][1]


@pytest.mark.parametrize("name", architectures.ARCHS)
def test_the_largest_batch_has_maps_of_fewer_elements_than_32_bits_count(name: str) -> None:
    """Triton's kernels count them so."""
    sizes, net = list[int](), gap(name)
    for module in net.features.modules():
        module.register_forward_hook(lambda _, __, out: sizes.append(out[0].numel()))
    with torch.no_grad():
        net.eval()(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValidationError):
        Recipe(batch_size=LARGEST_BATCH + 1)
    assert Recipe(batch_size=LARGEST_BATCH).batch_size * max(sizes) < 2**31


def gap(name: str, classes: int = 100, seed: int = 0) -> network.Network:
    return network.build(pool.expand("gap")[0], name, classes, seed)


def test_vgg_is_torchvisions_less_the_biases_of_its_convolutions() -> None:
    from torchvision.models import vgg16_bn

    theirs = vgg16_bn(weights=None).features.eval()
    biases = [name for name, layer in theirs.named_modules() if isinstance(layer, nn.Conv2d)]
    for name in biases:
        nn.init.zeros_(theirs.get_parameter(f"{name}.bias"))
    ours = gap("vgg16bn").features.eval()
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if k.rpartition(".bias")[0] not in biases})
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours(images), theirs(images))
    assert [type(layer) for layer in gap("vgg16bn").head] == [nn.Linear, nn.ReLU, Dropout, nn.Linear]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "strides"), [("mobilenetv2_s32", {}), ("mobilenetv2_2x2", {0: 1}), ("mobilenetv2", {0: 1, 2: 1})]
)
def test_mobilenetv2_is_torchvisions_with_strides_of_1(name: str, strides: dict[int, int]) -> None:
    """`strides` replaces those of the stem (0) and of the block that the second stage begins with (2)."""
    from torchvision.models import mobilenet_v2

    theirs = mobilenet_v2(weights=None).features.eval()
    for index, stride in strides.items():
        for layer in theirs[index].modules():
            if isinstance(layer, nn.Conv2d) and layer.stride == (2, 2):
                layer.stride = (stride, stride)
    ours = gap(name).features.eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(ours(images), theirs(images))


@pytest.mark.parametrize("name", architectures.ARCHS)
def test_initial_weights(name: str) -> None:
    """Kaiming normal: variance 2 / fan out in convolutions, 2 / fan in in linear layers; no bias but 0."""
    net = gap(name, seed=3)
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            weight = layer.weight.detach()
            fan = weight.shape[0] * weight[0, 0].numel() if weight.dim() == 4 else weight.shape[1]
            scaled = weight.double() * (fan / 2) ** 0.5
            n = weight.numel()
            assert abs(scaled.mean()) < 5 / n**0.5  # five standard errors, of the mean and of the deviation
            assert abs(scaled.std() - 1) < 5 / (2 * n) ** 0.5
            assert n < 1000 or abs((scaled.abs() < 1).double().mean() - 0.6827) < 0.05, "it is normal"
            assert layer.bias is None or not layer.bias.any()
        elif isinstance(layer, nn.BatchNorm2d):
            assert (layer.weight == 1).all()
            assert not layer.bias.any()


def test_only_the_seed_moves_them_and_a_pool_keeps_its_own(tmp_path: Path) -> None:
    mixes = (
        "self.mix = nn.Linear(channels, channels)\nnn.init.eye_(self.mix.weight)\nnn.init.constant_(self.mix.bias, 7)"
    )
    file = written(tmp_path, "mine", "return self.mix(x.mean((2, 3)))", mixes)
    mine = network.build(pool.expand(file)[0], "resnet20", 100, 0)
    assert torch.equal(mine.pool.mix.weight, torch.eye(64))  # type: ignore[union-attr]
    assert (mine.pool.mix.bias == 7).all()  # type: ignore[union-attr]
    same, other = gap("resnet20"), gap("resnet20", seed=1)
    for part in ("features", "head"):
        here, there, elsewhere = (getattr(net, part).state_dict() for net in (mine, same, other))
        assert all(torch.equal(here[name], there[name]) for name in here)
        assert not all(torch.equal(here[name], elsewhere[name]) for name in here)


def test_a_pool_of_the_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"to \[B, C\], here \(2, 64\), got \(2, 64, 1, 1\)"):
        network.materialise(torch.nn.AdaptiveAvgPool2d(1), (64, 8, 8))
