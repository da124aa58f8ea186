"""Class activation maps: kept weights, the two kinds of maps, and their picture."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from orchestrator import record
from orchestrator.record import Job
from orchestrator.worker import run_pack
from results import __main__
from results.page import cam
from results.store import schema
from results.store.folder import RunFolder
from search_spaces import pool
from search_spaces import space as spaces
from search_spaces.errors import RequestError
from search_spaces.grid import Entry, Grid, Pair
from search_spaces.recipe import Recipe
from search_spaces.trial import Trial
from trainer import cam as maps
from trainer import data, network
from trainer.augment import Images
from trainer.data import Dataset, subset
from trainer.network import Network

pytestmark = pytest.mark.usefixtures("nothing_collapses")  # trials of a few steps are no better than guessing
RECIPE = Recipe(epochs=1, batch_size=32, lr=0.02, train_samples=80, test_samples=40)
BODIES = {
    "mean": "return x.flatten(2).mean(2)",
    "writes": "return x.mul_(2).mean((2, 3)) / 2",
    "square": "return x.square().mean((2, 3))",
    "raises": "if self.training: raise ValueError('no more')\n        return x.mean((2, 3))",
    "diverges": "return x.mean((2, 3)) * (float('nan') if self.training else 1)",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pools")
    head = "from torch import nn\nclass CustomPool(nn.Module):\n    def forward(self, x):\n        "
    for name, body in BODIES.items():
        (folder / f"{name}.py").write_text(f"{head}{body}\n")
    return folder


def expand(spec: str, files: Path) -> pool.Pool:
    return pool.expand(str(files / f"{spec}.py") if spec in BODIES else spec)[0]


def make_grid(files: Path, *specs: str, arch: str = "resnet20") -> Grid:
    entries = tuple(Entry(expand(spec, files)) for spec in specs)
    return Grid("maps", entries, (Pair(arch, "digits"),), (0,), RECIPE)


def make_job(run: RunFolder, keep: bool) -> Job:
    return Job(run.where, keep_weights=keep)


@pytest.fixture(scope="module")
def grid(files: Path) -> Grid:
    return make_grid(files, "gap", "gem", "mean", "raises", "diverges")


@pytest.fixture(scope="module")
def run(grid: Grid, digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run folder as a sweep leaves it, with weights."""
    folder = RunFolder(tmp_path_factory.mktemp("cam") / "run")
    folder.create()
    folder.write_grid(grid)
    run_pack(list(grid), digits, make_job(folder, keep=True))
    return folder


def ids(grid: Grid) -> dict[str, str]:
    return {planned.trial.pool.label: planned.trial.id for planned in grid}


def kept(run: RunFolder, grid: Grid, name: str) -> tuple[Trial, bytes]:
    planned, _ = cam.find(run, ids(grid)[name])
    return planned.trial, run.trial(planned.trial.id).weights.read() or b""


# Weights


def test_weights_are_kept_of_the_trials_that_complete(run: RunFolder, grid: Grid) -> None:
    assert {path.name for path in (run.path / "weights").iterdir()} == {
        f"{ids(grid)[name]}.pt" for name in ("gap", "gem", "mean")
    }


@pytest.mark.parametrize("keep", [True, False])
def test_weights_are_kept_if_asked_for_and_there_before_the_row_is(
    files: Path, digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: bool
) -> None:
    folder = RunFolder(tmp_path)
    folder.create()
    found = []

    def write_trial(self: RunFolder, row: Mapping[str, Any]) -> None:
        assert row["status"] == schema.COMPLETED
        found.append(self.trial(row["trial_id"]).weights.read() is not None)

    monkeypatch.setattr(RunFolder, "write_trial", write_trial)
    run_pack(list(make_grid(files, "gap")), digits, make_job(folder, keep))
    assert found == [keep]


@pytest.mark.parametrize("name", ["gap", "gem"])
def test_the_weights_are_those_after_the_last_epoch(run: RunFolder, grid: Grid, digits: Dataset, name: str) -> None:
    trial, weights = kept(run, grid, name)
    _, accuracy = cam.find(run, trial.id)
    assert all(tensor.device.type == "cpu" for tensor in torch.load(io.BytesIO(weights), weights_only=True).values())
    net = maps.restore(trial, weights, digits.classes)
    images, index = Images(digits, torch.device("cpu")), torch.from_numpy(subset(len(digits.test_labels), 40))
    hits = net(images.test(index)).argmax(1) == images.test_labels[index]
    assert accuracy == pytest.approx(100 * hits.double().mean().item())


# Maps


@pytest.fixture
def net_of(files: Path) -> Callable[..., Network]:
    def build(spec: str, arch: str = "resnet20") -> Network:
        return network.build(expand(spec, files), arch, 10, seed=0).requires_grad_(False).eval()

    return build


def feature_maps(net: Network, digits: Dataset, count: int = 6) -> tuple[Tensor, Tensor]:
    """Of the first test images, and what they are predicted to be."""
    with torch.no_grad():
        features = net.features(Images(digits, torch.device("cpu")).test(torch.arange(count)))
        return features, net.head(net.pool(features.clone())).argmax(1)


def test_of_the_average_the_mean_of_cam_and_the_bias_are_the_logit(run: RunFolder, grid: Grid, digits: Dataset) -> None:
    net = maps.restore(*kept(run, grid, "gap"), digits.classes)
    features, classes = feature_maps(net, digits)
    found = maps.cam(net, features, classes)
    assert found.shape == (6, 8, 8)
    bias = net.head.get_parameter("bias")[classes]
    logits = net(Images(digits, torch.device("cpu")).test(torch.arange(6))).max(1).values
    torch.testing.assert_close(found.mean((1, 2)) + bias, logits)


@pytest.mark.parametrize("spec", ["gap", "mean", "writes"])
def test_of_an_average_grad_cam_is_the_positive_part_of_cam(net_of, digits: Dataset, spec: str) -> None:
    """By a factor, 1 / (H W); and a pool that writes into its input spoils neither."""
    net = net_of(spec)
    features, _ = feature_maps(net, digits)
    classes = net.head(features.mean((2, 3))).argmin(1)  # against which there is evidence
    before = features.clone()
    assert maps.averages(net, features)
    exact = maps.cam(net, features, classes)
    assert (exact < 0).any()
    assert (exact > 0).any()
    torch.testing.assert_close(maps.grad_cam(net, features, classes), exact.relu() / 64, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(features, before, rtol=0, atol=0)


def test_grad_cam_takes_the_gradient_through_the_pool(net_of, digits: Dataset) -> None:
    """By hand: with the mean of squares, d logit / d x_c(pos) = 2 w_c x_c(pos) / (H W)."""
    net = net_of("square")
    features, classes = feature_maps(net, digits)
    weights = net.head.get_parameter("weight")[classes] * 2 * features.mean((2, 3)) / 64
    by_hand = (weights[:, :, None, None] * features).sum(1).relu()
    assert by_hand.any()
    torch.testing.assert_close(maps.grad_cam(net, features, classes), by_hand, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("spec", "arch", "exact"),
    [
        ("gap", "resnet20", True),
        ("gem(p=1)", "resnet20", True),  # though its gradient is none where it clamps zeros
        ("gem", "resnet20", False),
        ("global_max", "resnet20", False),
        ("avg_max", "resnet20", False),
        ("square", "resnet20", False),
        ("global_max", "mobilenetv2_s32", True),  # of one position, the maximum is the average
        ("square", "mobilenetv2_s32", False),
    ],
)
def test_cam_is_for_pools_that_average_these_maps(net_of, digits: Dataset, spec: str, arch: str, exact: bool) -> None:
    net = net_of(spec, arch)
    assert maps.averages(net, feature_maps(net, digits)[0]) == exact


def test_of_dead_maps_every_pool_is_the_average_and_none_is_taken_for_it(net_of) -> None:
    net, dead = net_of("global_max"), torch.zeros(2, 64, 8, 8)
    assert not maps.averages(net, dead)
    assert not maps.grad_cam(net, dead, torch.tensor([0, 1])).any()


def test_the_map_is_of_the_predicted_class(run: RunFolder, grid: Grid, digits: Dataset) -> None:
    trial, weights = kept(run, grid, "gem")
    net = maps.restore(trial, weights, digits.classes)
    features, classes = feature_maps(net, digits, 5)
    seen = maps.look(trial, weights, digits, 5)
    assert not seen.exact
    assert seen.index.tolist() == [0, 1, 2, 3, 4]
    assert seen.predicted.tolist() == classes.tolist()
    np.testing.assert_allclose(seen.maps, maps.grad_cam(net, features, classes).numpy(), rtol=1e-4, atol=1e-6)
    assert ((seen.probability >= 0.1) & (seen.probability <= 1)).all()


def test_only_what_is_misclassified(run: RunFolder, grid: Grid, digits: Dataset) -> None:
    trial, weights = kept(run, grid, "gap")
    everything = maps.look(trial, weights, digits, 10_000)
    assert len(everything.index) == len(digits.test_labels)
    wrong = everything.index[everything.predicted != digits.test_labels]
    seen = maps.look(trial, weights, digits, 200, wrong=True)  # more than a batch has
    assert seen.index.tolist() == wrong[:200].tolist()
    right = dataclasses.replace(digits, test_labels=everything.predicted)
    with pytest.raises(RequestError, match="all 359 test images are classified right"):
        maps.look(trial, weights, right, 3, wrong=True)


# The command


def ask(capsys: pytest.CaptureFixture[str], run: RunFolder, trial: str, *options: str) -> tuple[int, str, str]:
    code = __main__.main(["cam", str(run.path), trial, *options])
    out, error = capsys.readouterr()
    return code, out, error


def test_the_picture(run: RunFolder, grid: Grid, digits: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ask(capsys, run, "gem-res", "--images", "5")
    path = run.path / "cam" / f"{ids(grid)['gem']}.png"
    assert (code, out) == (0, f"{path}\n")
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture.convert("RGB"))
    side, width, height, margin, top = (
        round(cam.DPI * inches) for inches in (cam.SIDE, *cam.CELL, cam.MARGIN, cam.HEADER)
    )
    assert pixels.shape == (top + 2 * (height + margin), 4 * (width + margin) + margin, 3)
    for number in range(4):
        cell = pixels[top : top + side, margin + number * (width + margin) :]
        image, over = cell[:, :side], cell[:, width - side : width]
        enlarged = digits.test_images[number, ..., 0].repeat(side // 32, 0).repeat(side // 32, 1)
        assert (image == enlarged[..., None]).all()  # as it is, in squares
        assert np.ptp(over, 2).max() > 60  # coloured
    assert (pixels[top + height + margin :, margin + width + margin :] == 255).all()  # no sixth image


@pytest.mark.soak
def test_the_picture_goes_where_it_is_wanted(
    run: RunFolder, grid: Grid, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    there = tmp_path / "new" / "maps.png"
    code, out, _ = ask(capsys, run, ids(grid)["gap"], "--images", "1", "--wrong", "--output", str(there))
    assert (code, out) == (0, f"{there}\n")
    assert there.exists()
    code, _, error = ask(capsys, run, ids(grid)["gap"], "--images", "1", "--output", str(there / "below.png"))
    assert code == 2
    assert "give another --output" in error


@pytest.mark.soak
def test_a_map_of_one_position_is_drawn_and_said_to_be_one(
    files: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = RunFolder(tmp_path)
    run.create()
    grid = make_grid(files, "gem", arch="vgg11bn")
    run.write_grid(grid)
    (planned,) = grid
    net = network.build(planned.trial.pool, "vgg11bn", 10, 0)
    sink = io.BytesIO()
    torch.save(net.state_dict(), sink)
    run.trial(planned.trial.id).weights.write(sink.getvalue())
    run.write_trial({**record.row(planned, schema.COMPLETED, (), None), "final_test_acc": 10.0})
    code, _, notes = ask(capsys, run, "gem", "--images", "2")
    assert code == 0
    assert "note: the feature map of vgg11bn is 1x1" in notes
    assert (run.path / "cam" / f"{planned.trial.id}.png").exists()


def test_what_cannot_be_drawn_is_named(
    run: RunFolder, grid: Grid, files: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def says(trial: str, *options: str, of: RunFolder = run) -> str:
        code, out, error = ask(capsys, of, trial, *options)
        assert (code, out) == (2, "")
        return error

    assert f"did you mean '{ids(grid)['gem']}'?" in says("gme-resnet20-digits-s0")
    assert f"2 trials begin with 'g': {ids(grid)['gap']}, {ids(grid)['gem']}; give more" in says("g")
    assert "expected 1 or more, got 0" in says("gem", "--images", "0")
    assert "ended as failed; only a trial that has completed" in says("raises")
    assert "ended as diverged" in says("diverges")

    other = RunFolder(tmp_path / "other")
    other.create()
    assert "unknown trial 'gap'" in says("gap", of=other)
    other.write_grid(grid)
    assert "has not ended yet" in says("gap", of=other)
    (gap, gem, *_) = grid
    for planned in (gap, gem):
        other.write_trial({**record.row(planned, schema.COMPLETED, (), None), "final_test_acc": 10.0})
    error = says("gap", of=other)
    assert "kept no weights" in error
    assert "`keep_weights: true`" in error
    assert "train it again" in error
    other.trial(gap.trial.id).weights.write(b"cut off")
    assert "do not fit its network" in says("gap", of=other)
    other.trial(gap.trial.id).weights.write(run.trial(gem.trial.id).weights.read() or b"")
    assert "do not fit its network" in says("gap", of=other)  # gem has a parameter more
    other.write_grid(make_grid(files, "gap"))
    assert "is not in the newest grid" in says("gem", of=other)


# Around it


def test_a_space_asks_for_weights_and_its_trials_are_the_same(tmp_path: Path) -> None:
    text = "name: mine\npairs: [{arch: resnet20, dataset: digits}]\npools: [gap]\nseeds: [1]\n"
    (tmp_path / "mine.yaml").write_text(text)
    without, with_weights = (
        spaces.load(tmp_path / "mine.yaml"),
        spaces.load(tmp_path / "mine.yaml", ["keep_weights=true"]),
    )
    assert (without.keep_weights, with_weights.keep_weights) == (False, True)
    assert [one.trial.id for one in without.grid] == [one.trial.id for one in with_weights.grid]
    with pytest.raises(RequestError, match="keep_weights"):
        spaces.load(tmp_path / "mine.yaml", ["keep_weights=perhaps"])


@pytest.mark.parametrize("form", ["class_names", "huggingface"])
def test_class_names_come_from_the_parquet_files(tmp_path: Path, form: str) -> None:
    names = [f"kind {i}" for i in range(10)]
    hugging = {"info": {"features": {"img": {}, "label": {"names": names, "_type": "ClassLabel"}}}}
    metadata = {"class_names": "\n".join(names), "huggingface": json.dumps(hugging)}
    table = pa.table({"img": [b""], "label": [0]})
    (tmp_path / "cifar10").mkdir()
    assert data.class_names("cifar10", tmp_path) is None
    file = tmp_path / "cifar10" / "test-00000-of-00001.parquet"
    pq.write_table(table, file)
    assert data.class_names("cifar10", tmp_path) is None
    pq.write_table(table.replace_schema_metadata({form: metadata[form]}), file)
    assert data.class_names("cifar10", tmp_path) == names
    assert data.class_names("digits", tmp_path) is None


def test_real_class_names(shared_data: Path) -> None:
    names = data.class_names("cifar100", shared_data) or []
    assert (len(names), names[0]) == (100, "apple")
    assert "Trouser" in (data.class_names("fmnist", shared_data) or [])
