"""The trainer: what it trains, and that it trains the same thing every time."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.plain import PlainTrainer
from search_spaces.errors import RequestError
from search_spaces.messages import shown_by
from search_spaces.trial import Trial
from tests.compare import numbers
from tests.memory import Memory
from tests.pool_files import noisy, written
from trainer import checkpoint, log, network
from trainer.augment import Images, epoch_draws
from trainer.data import Dataset
from trainer.outcome import Epoch
from trainer.train import Program, learning_rate, train, turns

CPU = torch.device("cpu")
Make = Callable[..., Trial]


def run(trial: Trial, data: Dataset, slot: Memory | None = None, **more: object) -> list[Epoch]:
    return list(train(on_cpu(trial, data), slot=slot, **more))  # type: ignore[arg-type]


def on_cpu(trial: Trial, data: Dataset) -> Program:
    return Program(trial, Images(data, CPU))


@pytest.fixture(
    params=["gem", "noisy", "dropout", *(pytest.param(name, marks=pytest.mark.soak) for name in ("relu6", "bf16"))]
)
def a_trial(request: pytest.FixtureRequest, make_trial: Make, tmp_path: Path) -> Trial:
    if request.param == "noisy":
        return make_trial(noisy(tmp_path))
    arch = {"dropout": "vgg11bn", "relu6": "mobilenetv2_s32"}.get(request.param, "resnet20")
    return make_trial("gem", arch, precision="bf16" if request.param == "bf16" else "fp32")


def stopped(trial: Trial, data: Dataset, after: int, checkpoint_every: int = 100) -> Memory:
    """The checkpoint that a trial leaves which is stopped after so many epochs."""
    slot = Memory()
    epochs = train(on_cpu(trial, data), slot=slot, checkpoint_every=checkpoint_every)
    for _ in range(after):
        next(epochs)
    epochs.close()  # type: ignore[attr-defined]
    return slot


def test_two_runs_are_bit_equal_whatever_ran_before(a_trial: Trial, digits: Dataset, make_trial: Make) -> None:
    first = run(a_trial, digits)
    run(make_trial("global_max", seed=9, epochs=1), digits)
    torch.manual_seed(123)
    torch.rand(7)
    assert numbers(run(a_trial, digits)) == numbers(first)


@pytest.mark.parametrize("stop_after", [1, 2])
def test_a_stopped_trial_goes_on_bit_equal(a_trial: Trial, digits: Dataset, stop_after: int) -> None:
    slot = stopped(a_trial, digits, stop_after)
    assert slot.writes == 1
    said: list[str] = []
    with shown_by(said.append):
        resumed = run(a_trial, digits, slot)
    assert said == [f"resumed after epoch {stop_after}"]
    assert numbers(resumed) == numbers(run(a_trial, digits))


def test_a_killed_trial_goes_on_from_its_newest_checkpoint(make_trial: Make, digits: Dataset) -> None:
    trial = make_trial("gem", epochs=5)
    slot = Memory()
    epochs = train(on_cpu(trial, digits), slot=slot, checkpoint_every=2)
    for _ in range(3):
        next(epochs)
    left_behind = Memory(slot.data)  # as after kill -9: the generator is never closed
    said: list[str] = []
    with shown_by(said.append):
        resumed = run(trial, digits, left_behind, checkpoint_every=2)
    assert said == ["resumed after epoch 2"]
    assert numbers(resumed) == numbers(run(trial, digits))
    epochs.close()  # type: ignore[attr-defined]


def test_each_epoch_says_what_has_trained_it(make_trial: Make, digits: Dataset) -> None:
    trial, slot = make_trial(), Memory()
    first = turns(on_cpu(trial, digits), slot=slot, git_commit="before", kernels=None)
    next(filter(None, first))
    first.close()
    second = turns(on_cpu(trial, digits), slot=slot, git_commit="after", kernels="2 without norm")
    trained_by = [(epoch.git_commit, epoch.kernels) for epoch in second if epoch]
    assert trained_by == [("before", None), *[("after", "2 without norm")] * 2]


def with_another_layer(trial_id: str, data: bytes) -> bytes:
    """As after a change of the network that nobody gave a new protocol."""
    state = checkpoint.decode(trial_id, data)
    del state["network"]["head.bias"]
    return checkpoint.encode(trial_id, state)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda _, data: data[: len(data) // 2], "it is damaged"),
        (lambda *_: b"", "it is damaged"),
        (lambda *_: b"junk" * 50, "it is damaged"),
        (with_another_layer, "it has other tensors than the network (head.bias)"),
        (lambda name, data: checkpoint.encode("another", checkpoint.decode(name, data)), "it belongs to another"),
    ],
    ids=["cut", "empty", "junk", "other tensors", "another trial's"],
)
def test_a_checkpoint_of_no_use_is_passed_over(
    make_trial: Make, digits: Dataset, spoil: Callable[[str, bytes], bytes], says: str
) -> None:
    trial = make_trial(epochs=2)
    data = stopped(trial, digits, 1).data
    assert data is not None
    said: list[str] = []
    with shown_by(said.append):
        again = run(trial, digits, Memory(spoil(trial.id, data)))
    assert said[0].startswith(f"checkpoint passed over, the trial starts from its first epoch: {says}")
    assert numbers(again) == numbers(run(trial, digits))


def test_a_checkpoint_runs_no_code(make_trial: Make, digits: Dataset, tmp_path: Path) -> None:
    import io

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    sink = io.BytesIO()
    torch.save({"trial": make_trial(epochs=1).id, "network": Evil()}, sink)
    run(make_trial(epochs=1), digits, Memory(sink.getvalue()))
    assert not (tmp_path / "ran").exists()


def test_training_agrees_with_the_benchmarks_plain_loop(make_trial: Make, digits: Dataset) -> None:
    """Fed the same batches, the same losses: torch.optim.SGD, torch's cosine, torch's layers in the default layout.

    Steps cross an epoch, so that the schedule moves. In float64, because a deep network with batch norm multiplies
    float32's rounding by ten thousand within six steps, which would hide a small mistake in the recipe; and at a power
    of two, which the learning rate's tensor holds exactly.
    """
    trial = make_trial("gap", lr=2**-8, weight_decay=0.05, epochs=4, batch_size=64, train_samples=160)
    program = on_cpu(trial, digits)
    plain = PlainTrainer(network.build(trial.pool, trial.arch, digits.classes, trial.seed), trial.recipe, CPU)
    for net in (program.network, plain.network):
        net.double().train()
    program.optimizer.momenta = [buffer.double() for buffer in program.optimizer.momenta]
    ours, theirs = [], []
    for epoch in (1, 2):
        program.lr.fill_(learning_rate(trial.recipe, epoch - 1))
        for images, labels in batches(program, digits, epoch):
            loss, _ = program.step(images.double(), labels)
            ours.append(loss.item() / len(labels))
            theirs.append(plain.step(images.double().contiguous(), labels))
        plain.schedule.step()
        assert plain.schedule.get_last_lr()[0] == pytest.approx(learning_rate(trial.recipe, epoch))
    assert len(ours) == 6
    assert ours == pytest.approx(theirs, rel=1e-5)


def batches(program: Program, data: Dataset, epoch: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    draws = epoch_draws(program.trial.seed, epoch, program._train_index, data.flip)
    parts = draws.split(program.trial.recipe.batch_size)
    return [(program.images.crops(part), program.images.train_labels[part[:, 0]]) for part in parts]


def test_two_pools_see_the_same_batches(make_trial: Make, digits: Dataset) -> None:
    seen = []
    for spec in ("gap", "gem"):
        program = on_cpu(make_trial(spec, seed=4), digits)
        seen.append([images for images, _ in batches(program, digits, 1)])
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def test_an_epoch_is_its_steps(make_trial: Make, digits: Dataset) -> None:
    """Loss and accuracy of an epoch are means over its images, partial batch included."""
    trial = make_trial(epochs=1)
    (epoch,) = run(trial, digits)
    program = on_cpu(trial, digits)
    program.network.train()
    sums = [(program.step(images, labels), len(labels)) for images, labels in batches(program, digits, 1)]
    assert [n for _, n in sums] == [32, 32, 16]
    assert epoch.train_loss == pytest.approx(sum(loss.item() for (loss, _), _ in sums) / 80)
    assert epoch.train_acc == pytest.approx(100 * sum(hits.item() for (_, hits), _ in sums) / 80)


def test_evaluation_is_that_of_the_network(make_trial: Make, digits: Dataset) -> None:
    trial = make_trial("gem", epochs=2, test_samples=None)
    program = on_cpu(trial, digits)
    history = list(train(program))
    program.network.eval()
    images = program.images.normalise(torch.from_numpy(digits.test_images))
    with torch.no_grad():
        logits = program.network(images)
    labels = torch.from_numpy(digits.test_labels)
    assert history[-1].test_acc == pytest.approx(100 * (logits.argmax(1) == labels).float().mean().item())
    assert history[-1].test_loss == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-4)


def test_compiled_kernels_are_a_switch_not_a_recipe(
    make_trial: Make, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a backend that takes the graph and compiles nothing: the real one takes half a minute for each network."""
    compiled: list[object] = []

    def backend(graph: Callable[..., object], inputs: object) -> Callable[..., object]:
        compiled.append(graph)
        return graph

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda network: real(network, backend=backend))
    trial = make_trial("gem", epochs=2)
    history = list(train(Program(trial, Images(digits, CPU), compiled=True)))
    assert compiled
    assert [e.train_loss for e in history] == pytest.approx([e.train_loss for e in run(trial, digits)], rel=1e-4)


@pytest.mark.soak
@pytest.mark.parametrize("arch", ["resnet20", "vgg11bn"])
def test_torch_compile_itself_computes_the_same(arch: str, make_trial: Make, digits: Dataset) -> None:
    """One step: after it, rounding has been through a learning rate that is too large for so few images."""
    trial = make_trial("gap", arch, epochs=1, batch_size=8, train_samples=8, test_samples=16)
    (compiled,) = train(Program(trial, Images(digits, CPU), compiled=True))
    (eager,) = run(trial, digits)
    assert compiled.train_loss == pytest.approx(eager.train_loss, rel=1e-4)


def test_it_learns(make_trial: Make, digits: Dataset) -> None:
    history = run(make_trial("gap", epochs=6, train_samples=512, test_samples=None), digits)
    assert history[-1].test_acc > 60
    assert history[-1].train_loss < history[0].train_loss / 2


def test_a_parameter_made_in_the_first_forward_learns(tmp_path: Path, make_trial: Make, digits: Dataset) -> None:
    made = "if self.scale is None:\n    self.scale = nn.Parameter(torch.ones(x.shape[1]))\n"
    lazy = written(tmp_path, "lazy", made + "return x.mean((2, 3)) * self.scale", init="self.scale = None")
    program = on_cpu(make_trial(lazy, epochs=1), digits)
    list(train(program))
    scale = program.network.pool.scale
    assert isinstance(scale, nn.Parameter)
    assert not torch.equal(scale.detach(), torch.ones_like(scale))


def test_a_loss_that_is_not_finite_ends_the_trial(make_trial: Make, digits: Dataset) -> None:
    slot = Memory()
    trial = make_trial(lr=1e20, epochs=5)
    history = run(trial, digits, slot, checkpoint_every=1)
    assert history[-1].diverged
    assert len(history) < 5
    assert all(not epoch.diverged for epoch in history[:-1])
    assert len(run(trial, digits, slot)) == len(history), "resuming does not train on"


def test_a_test_loss_that_is_not_finite_ends_it_too(tmp_path: Path, make_trial: Make, digits: Dataset) -> None:
    """Its accuracy would be chance level, and count as a result."""
    odd = written(tmp_path, "odd", "return x.mean((2, 3)) if self.training else x.mean((2, 3)) / 0 * 0")
    history = run(make_trial(odd), digits)
    assert len(history) == 1
    assert history[0].diverged
    assert math.isfinite(history[0].train_loss)


def test_a_recipe_that_does_not_fit_the_data_is_refused(make_trial: Make, digits: Dataset) -> None:
    with pytest.raises(RequestError, match=r"recipe\.batch_size: 33 training images"):
        on_cpu(make_trial(train_samples=33), digits)


def test_log_lines_are_the_benchmarks() -> None:
    epoch = Epoch(10, 1.23456, 45.678, 1.5, 40.0, 0.009549150281, 3.2, 1000.0)
    shown = "TRAIN_METRICS: epoch=10 train_loss=1.2346 train_acc=45.68 test_loss=1.5000 test_acc=40.00 lr=0.009549"
    assert log.epoch_line(epoch) == shown


@pytest.mark.usefixtures("nothing_collapses")
def test_the_command_prints_the_benchmarks_lines(capsys: pytest.CaptureFixture[str]) -> None:
    from trainer.__main__ import main

    options = "--arch resnet20 --dataset digits --pool gem --seed 3"
    options += " --set epochs=11 --set train_samples=40 --set test_samples=20"
    assert main(options.split()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("TRAIN_METRICS:")] == ["epoch=10", "epoch=11"]
    assert lines[-2].startswith("Final metrics (resnet20-digits): test_acc_resnet20-digits=")
    assert re.fullmatch(r"images_per_s=\d+\.\d train_s=\d+\.\d", lines[-1])


def test_the_command_refuses_all_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    from trainer.__main__ import main

    assert main("--arch resnt20 --dataset digit --pool gm --seed -1 --threads 0 --set epoch=2 --set lr=x".split()) == 2
    errors = capsys.readouterr().err
    for said in ("'resnet20'", "'digits'", "'gem'", "--seed", "--threads", "'epochs'", "--set.lr"):
        assert said in errors
