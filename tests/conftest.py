"""What tests share: real digits, trials small enough for a second, and one Ray cluster for the whole session."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from trainer import data, pool
from trainer.data import Dataset
from trainer.recipe import Recipe
from trainer.trial import Trial

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
TINY = Recipe(epochs=3, batch_size=32, lr=0.02, train_samples=80, test_samples=40)  # the last batch has 16


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA GPU here"))


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    torch.set_num_threads(2)


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Not the user's own."""
    os.environ["POOLSWEEP_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return data.load("digits", Path("unused"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real CIFAR-100 and Fashion-MNIST as Parquet."""
    if not (SHARED / "cifar100").is_dir():
        pytest.skip(f"no real images in {SHARED}")
    return SHARED


@pytest.fixture
def make_trial() -> Callable[..., Trial]:
    """`make_trial(pool="gem(p=1)", arch="mobilenetv2", epochs=1)`: a tiny trial on digits."""

    def make(pool_spec: str = "gap", arch: str = "resnet20", seed: int = 0, **recipe: object) -> Trial:
        values = {name: getattr(TINY, name) for name in Recipe.__dataclass_fields__}
        return Trial(pool.expand(pool_spec)[0], arch, "digits", seed, Recipe.of({**values, **recipe}))

    return make


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str | None]:
    """A Ray cluster of one node that no driver is connected to, as a user's cluster would be."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster  # type: ignore

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    yield cluster.address
    cluster.shutdown()
