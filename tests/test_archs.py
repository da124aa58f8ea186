"""Architectures: what is pinned about them."""

from __future__ import annotations

import pytest
import torch

from trainer import arch, network, pool
from trainer.problems import RequestError

# Parameters with 100 classes and average pooling. ResNet-56 has the 0.86M that He et al. report for 1x1 projections.
PARAMETERS = {
    "resnet20": 278_324,
    "resnet32": 472_756,
    "resnet44": 667_188,
    "resnet56": 861_620,
    "resnet110": 1_736_564,
    "vgg11bn": 9_277_284,
    "vgg13bn": 9_462_180,
    "vgg16bn": 14_774_436,
    "vgg19bn": 20_086_692,
    "mobilenetv2": 2_351_972,
}


@pytest.mark.parametrize("name", arch.ARCHS)
def test_parameters_and_feature_map(name: str) -> None:
    net = network.build(pool.expand("gap")[0], name, classes=100, seed=0).eval()
    with torch.no_grad():
        maps = net.features(torch.randn(2, 3, 32, 32))
        logits = net(torch.randn(2, 3, 32, 32))
    assert tuple(maps.shape[1:]) == arch.get(name).feature_map
    assert logits.shape == (2, 100)
    assert network.count_parameters(net) == PARAMETERS[name]


def test_the_feature_maps_of_the_benchmark() -> None:
    assert arch.get("resnet56").feature_map == (64, 8, 8)
    assert arch.get("vgg16bn").feature_map == (512, 1, 1)
    assert arch.get("mobilenetv2").feature_map == (1280, 1, 1)


def test_vgg_is_torchvisions() -> None:
    """The same layers: torchvision's own weights fit into ours."""
    from torchvision.models import vgg16_bn

    ours = network.build(pool.expand("gap")[0], "vgg16bn", 10, 0).features
    ours.load_state_dict(vgg16_bn(weights=None).features.state_dict())


def test_no_architecture_has_dropout() -> None:
    for name in arch.ARCHS:
        net = network.build(pool.expand("gap")[0], name, 10, 0)
        assert not [m for m in net.modules() if isinstance(m, torch.nn.Dropout)]


def test_an_unknown_one_answers_with_the_nearest() -> None:
    with pytest.raises(RequestError, match="did you mean 'resnet56'"):
        arch.get("resnet65")


def test_a_pool_of_the_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 64, 1, 1\); it must give \[B, C\], here \(2, 64\)"):
        network.materialise(torch.nn.AdaptiveAvgPool2d(1), (64, 8, 8))
