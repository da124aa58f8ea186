"""What a GPU wants beside the network, as far as that can be told without one; the rest is in test_gpu.py."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch

from search_spaces import pool
from trainer import network
from trainer.device import gpu, graphs

pytest.importorskip("triton")


@pytest.mark.parametrize("arch", ["resnet20", "vgg11bn", "mobilenetv2_s32"])
def test_norms_that_are_counted_at_once_compute_the_same(arch: str) -> None:
    plain = network.build(pool.expand("gem")[0], arch, 10, 1)
    plain.head.eval()  # or dropout would draw other masks for each
    fast = copy.deepcopy(plain)
    after_backward = gpu.speed_up(fast.features, "fp32").after_backward
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        after_backward()
        assert torch.equal(plain(images), fast(images))
    for each in (plain, fast):
        each(images).sum().backward()
    after_backward()
    for (name, ours), theirs in zip(fast.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad), name  # type: ignore[arg-type]
    state, expected = fast.state_dict(), plain.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], expected[name]) for name in state)
    assert torch.equal(plain.eval()(images), fast.eval()(images))


def test_norms_take_counts_from_a_checkpoint() -> None:
    net = network.build(pool.expand("gap")[0], "resnet20", 10, 1)
    after_backward = gpu.speed_up(net.features, "fp32").after_backward
    net.load_state_dict({name: torch.ones_like(tensor) * 7 for name, tensor in net.state_dict().items()})
    after_backward()
    counts = [tensor.item() for name, tensor in net.named_buffers() if name.endswith("num_batches_tracked")]
    assert counts == [8] * sum(isinstance(module, torch.nn.BatchNorm2d) for module in net.modules())


def test_no_two_borrowers_share_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch gives its 32 streams in turn, and the first again after the last."""

    class Borrower:
        pass

    turn = itertools.cycle(range(gpu.STREAMS))
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: next(turn))
    monkeypatch.setattr(gpu, "_free", {})
    device = torch.device("cuda", 0)
    living: dict[Borrower, Any] = {}
    for number in range(200):
        borrower = Borrower()
        living[borrower] = gpu.lend_stream(device, borrower)
        assert len(set(living.values())) == len(living)
        del borrower
        if number % 3 == 0 or len(living) == gpu.STREAMS:
            del living[next(iter(living))]


def test_a_step_that_synchronizes_is_refused_before_cuda_has_to() -> None:
    before = torch.cuda.synchronize
    with graphs.refused_waits():
        for wait in (
            torch.cuda.synchronize,
            lambda: torch.cuda.synchronize(device=0),
            torch.accelerator.synchronize,
            lambda: torch.cuda.Event.synchronize(None),  # type: ignore[arg-type]
        ):
            with pytest.raises(RuntimeError, match="it calls synchronize"):
                wait()
    assert torch.cuda.synchronize is before
