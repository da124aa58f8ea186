"""What tests share: real digits, trials small enough for a second, and one Ray cluster for the whole session."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported: see `_threads`

import hypothesis
import pytest
import torch
from pyarrow import fs

from results.store.folder import RunFolder
from search_spaces import chance, pool
from search_spaces.recipe import Recipe
from search_spaces.trial import Trial
from trainer import data
from trainer.data import Dataset

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is declared: what it computes is tested without a GPU too

hypothesis.settings.register_profile("busy", deadline=None)  # 200 ms an example means nothing on a shared machine
hypothesis.settings.load_profile("busy")

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
S3_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "someone",
    "AWS_SECRET_ACCESS_KEY": "hush",
    "AWS_REGION": "eu-west-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
TINY = Recipe(epochs=3, batch_size=32, lr=0.02, train_samples=80, test_samples=40)  # the last batch has 16


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU; start with what runs whole sweeps, which takes longest."""
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA GPU here"))
    items.sort(key=lambda item: item.path.name not in ("test_sweep.py", "test_inline.py"))


@pytest.fixture(scope="module")
def selected(request: pytest.FixtureRequest) -> set[str]:
    """The ids of the module's tests that `-m` and `-k` left, as far as they have any: a fixture prepares no others."""
    calls = [getattr(item, "callspec", None) for item in request.session.items if item.path == request.path]
    return {call.id for call in calls if call}


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    """One: two that the kernel has put on one core wait for each other six times as long as they work.

    Where a test needs two all the same, they give the core away while they wait.
    """
    torch.set_num_threads(1)


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
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is allocated is full of NaN: a kernel that reads what none has written shows it."""

    def full_of_nan(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def allocated(*args: object, **settings: object) -> torch.Tensor:
            tensor = allocate(*args, **settings)
            return tensor.fill_(math.nan) if tensor.is_floating_point() else tensor

        return allocated

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, full_of_nan(getattr(torch, name)))


@pytest.fixture(scope="module")
def nothing_collapses() -> Iterator[None]:
    """Trials that are too short to learn anything complete all the same; in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chance, "most_hits", lambda classes, images: -1)
        yield


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """An empty run folder."""
    folder = RunFolder(tmp_path / "run")
    folder.create()
    return folder


@pytest.fixture
def make_trial() -> Callable[..., Trial]:
    """`make_trial(pool="gem(p=1)", arch="vgg11bn", epochs=1)`: a tiny trial on digits."""

    def make(pool_spec: str = "gap", arch: str = "resnet20", seed: int = 0, **recipe: object) -> Trial:
        values = {name: getattr(TINY, name) for name in Recipe.__dataclass_fields__}
        return Trial(pool.expand(pool_spec)[0], arch, "digits", seed, Recipe.of({**values, **recipe}))

    return make


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB: a checkpoint of ResNet-20 takes 2.2."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=False, stderr=subprocess.DEVNULL)  # a test may have done it


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """HOST:PORT of an S3 on this machine, in this process."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it tells of every request
    moto_server = pytest.importorskip("moto.server")
    server = moto_server.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    yield "{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of an empty bucket there, which the environment leads to."""
    for name, value in S3_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{s3_server}")
    bucket = f"test-{uuid.uuid4().hex[:8]}"
    endpoint = {"endpoint_override": s3_server, "scheme": "http"}
    fs.S3FileSystem(allow_bucket_creation=True, **endpoint).create_dir(bucket)
    return f"s3://{bucket}"


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str | None]:
    """A Ray cluster of one node that no driver is connected to, as a user's cluster would be."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster  # type: ignore

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    yield cluster.address
    cluster.shutdown()
