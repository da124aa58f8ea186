"""Each private part of torch can be missing: what stands in for it does the same, more slowly."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.flop_counter import FlopCounterMode

from search_spaces import pool
from tests.pool_files import written
from trainer import compat
from trainer.gate import checks, process_state
from trainer.gate.case import Case


def test_this_installation_lacks_nothing_and_what_it_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compat.missing() == []
    monkeypatch.delattr(torch, "_foreach_copy_")
    (lost,) = compat.missing()
    assert lost.startswith("torch._foreach_copy_: copies of many tensors")


@pytest.mark.parametrize("bias", [None, torch.ones(5)], ids=["plain", "bias"])
def test_a_product_without_onednn(monkeypatch: pytest.MonkeyPatch, bias: torch.Tensor | None) -> None:
    a, b = torch.randn(2, 7, 3), torch.randn(2, 5, 3)
    fast = compat.product(a[0], b[0], bias)
    monkeypatch.setattr(compat, "_onednn_product", None)
    torch.testing.assert_close(compat.product(a[0], b[0], bias), fast)


@pytest.mark.parametrize("low", [False, True])
def test_the_gradient_of_a_clamp_in_place_or_not(monkeypatch: pytest.MonkeyPatch, low: bool) -> None:
    if low:
        monkeypatch.setattr(compat, "_clamp_gradient", None)
    x = torch.linspace(-3, 9, 24).requires_grad_()
    out = x.clamp(0, 6)
    out.sum().backward()
    gradient = torch.ones(24)
    assert torch.equal(compat.clamp_gradient(gradient, out.detach(), 0, 6, torch.empty(24)), x.grad)  # type: ignore[arg-type]
    assert compat.clamp_gradient(gradient, out.detach(), 0, 6, gradient) is gradient
    assert torch.equal(gradient, x.grad)  # type: ignore[arg-type]


@pytest.mark.parametrize("low", [False, True])
def test_many_copies(monkeypatch: pytest.MonkeyPatch, low: bool) -> None:
    if low:
        monkeypatch.setattr(compat, "_copy_all", None)
    targets, sources = [torch.zeros(2), torch.zeros(3, dtype=torch.bfloat16)], [torch.ones(2), torch.ones(3)]
    compat.copy_all(targets, sources)
    assert all(bool((target == 1).all()) for target in targets)


def test_without_fake_tensors_the_gate_still_sees_what_meta_shows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(compat, "_found", lambda _: None)
    waits = written(tmp_path, "waits", "return x.mean((2, 3)) * (1 if x.sum() > -1 else 2)")
    for spec, found in (("gap", []), (waits, ["host-sync"])):
        (one,) = pool.expand(spec)
        assert [finding.check for finding in checks.check(Case(one, "resnet20"))] == found


def test_without_torchs_registries_the_rest_of_the_process_is_still_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "_found", lambda _: None)
    monkeypatch.delattr(torch.library, "_impls")  # and what else has another name
    before = process_state.snapshot()
    torch.set_default_dtype(torch.float64)
    try:
        changed = process_state.changed_settings(before, process_state.snapshot())
    finally:
        torch.set_default_dtype(torch.float32)
    assert changed == ["the default dtype (torch.float32 -> torch.float64)"]


def test_what_changes_every_call_of_torch_is_seen() -> None:
    class Passes(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return function(*args, **kwargs or {})

    def seen() -> set[str]:
        return {name for name, value in compat.global_state() if before[name] != value}

    before = dict(compat.global_state())
    with Passes():
        assert seen() == {"modes of torch functions"}
    with FlopCounterMode(display=False):
        assert "modes of torch dispatch" in seen()
    handle = register_module_forward_hook(lambda *_: None)
    assert seen() == {"hooks on all modules (forward_hooks)"}
    handle.remove()
    library = torch.library.Library("aten", "IMPL")
    library.impl("median", lambda x: x, "XPU")  # of which there is none here
    assert seen() == {"operators of torch"}
    library._destroy()
    assert not seen()


@pytest.mark.parametrize("lacks", ["", "import torch._dynamo; ", "import atexit; del atexit._run_exitfuncs; "])
def test_architectures_and_forks_in_a_process_that_is_otherwise(lacks: str) -> None:
    code = (
        f"{lacks}import os, sys\nfrom trainer.isolation import Child\nfrom trainer import archs\n"
        "def serve(requests):\n    requests.recv()\n    requests.send(1)\n    requests.send(None)\n"
        "child = Child(serve)\nassert list(child.ask(0)) == [1]\nassert child.close() == 'exit code 0'\n"
        f"assert ('torch._dynamo' in sys.modules) == ({lacks!r}.startswith('import torch')), 'it takes 3 s'"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=True)
