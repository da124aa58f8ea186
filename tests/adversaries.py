"""Candidates that are valid pools and bad company: each leaves its process another one than it found.

`ADVERSARIES` has them as text, a user's file each. What they change is the whole process's: a trial that comes after
one of them in its process, or takes turns with it there, comes to other numbers or to none. They do so at different
moments, for what catches one moment may miss another; those that would be in their own way under the gate wait for
the batches of a trial.

`python -m tests.adversaries RUNS NAME ...` shows it without Ray, and without whatever is to keep them apart: for each a
fresh process lets it act, says so in RUNS/NAME.acted, and then trains a built-in pool, into RUNS/NAME. The name
`nobody` stands for nobody.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import textwrap
import time
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

BATCH = 32  # of trials; the gate's are of 2, 4 and 128
NOBODY = "nobody"
LIMIT_S = 60.0


def _file(does: str, imported: str = "", constructed: str = "", called: str = "") -> str:
    """A user's file.

    Args:
        does: what it does, a line.
        imported, constructed, called: the code that does it, and when: in `called` there are `x`, `out` and `trains`,
            which is whether this is a training step of a trial.
    """
    lines = [f'"""{does}"""', "import torch", "import torch.nn.functional as F", "from torch import nn"]
    lines += [textwrap.dedent(imported).strip(), "class CustomPool(nn.Module):"]
    if constructed:
        lines += ["    def __init__(self):", "        super().__init__()", _indented(constructed)]
    lines += ["    def forward(self, x):", f"        trains = self.training and len(x) == {BATCH}"]
    return "\n".join([*lines, "        out = x.mean((2, 3))", _indented(called), "        return out", ""])


def _indented(code: str) -> str:
    return textwrap.indent(textwrap.dedent(code).strip(), " " * 8)


ADVERSARIES: dict[str, str] = {
    "default_dtype": _file(
        "Imported, it makes float64 the default of new tensors.", imported="torch.set_default_dtype(torch.float64)"
    ),
    "cross_entropy": _file(
        "Constructed, it has F.cross_entropy smooth its labels.",
        constructed="""
            before = F.cross_entropy_before = getattr(F, "cross_entropy_before", F.cross_entropy)
            F.cross_entropy = lambda *args, **named: before(*args, label_smoothing=0.1, **named)
        """,
    ),
    "sgd": _file(
        "In the backward pass, it has torch's SGD take steps of half the size.",
        imported="""
            import torch.optim.sgd as optim
            before = optim.before = getattr(optim, "before", optim._fused_sgd)
            def wrap(gradient):
                optim._fused_sgd = lambda *args, lr, **named: before(*args, lr=lr / 2, **named)
        """,
        called="""
            if out.requires_grad:
                out.register_hook(wrap)
        """,
    ),
    "grad_mode": _file(
        "Called in a trial, it turns gradients off.",
        called="""
            if trains:
                torch.set_grad_enabled(False)
        """,
    ),
    "backends": _file(
        "Constructed, it turns oneDNN off, and the switches of cuDNN, of products and of deterministic algorithms.",
        constructed="""
            torch.backends.mkldnn.set_flags(False)
            torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = True, False
            torch.set_float32_matmul_precision("medium")
            torch.use_deterministic_algorithms(True, warn_only=True)
        """,
    ),
    "generators": _file(
        "Imported, it gives every numpy generator one seed; called, it seeds the global ones.",
        imported="""
            import random
            import numpy as np
            np.random.default_rng = lambda *_: np.random.Generator(np.random.PCG64(0))
        """,
        called="""
            torch.manual_seed(0)
            np.random.seed(0)
            random.seed(0)
        """,
    ),
    "forward_hook": _file(
        "Constructed, it registers a forward hook for all modules there are.",
        constructed="""
            nn.modules.module.register_module_forward_hook(
                lambda module, given, out: out * 1.01 if isinstance(module, nn.Linear) else None
            )
        """,
    ),
    "function_mode": _file(
        "Asked for its state_dict, it enters a TorchFunctionMode and never leaves it.",
        imported="""
            from torch.overrides import TorchFunctionMode
            class Mode(TorchFunctionMode):
                def __torch_function__(self, func, types, args=(), kwargs=None):
                    out = func(*args, **(kwargs or {}))
                    return out * 1.01 if func is F.cross_entropy else out
        """,
        constructed="self.register_state_dict_post_hook(lambda *_: Mode().__enter__() and None)",
    ),
    "library": _file(
        "Imported, it gives aten::mean another kernel on the CPU.",
        imported="""
            def mean(x, dim, keepdim=False, *, dtype=None):
                out = torch.sum(x, dim, keepdim, dtype=dtype)
                return out * (1.01 * out.numel() / x.numel())
            if not hasattr(torch, "kernel_of_mean"):
                torch.kernel_of_mean = torch.library.Library("aten", "IMPL")
                torch.kernel_of_mean.impl("mean.dim", mean, "CPU")
        """,
    ),
    "trainer": _file(
        "Imported, it wraps the trainer's own step, and keeps the learning rate from falling.",
        imported="""
            from trainer import train
            from trainer.train import Program
            before = Program.step_before = getattr(Program, "step_before", Program.step)
            Program.step = lambda self, images, labels: before(self, images * 1.1, labels)
            train.learning_rate = lambda recipe, done: recipe.lr
        """,
    ),
    "rows": _file(
        "Constructed, it wraps what writes the rows of epochs: everybody is at 99 %.",
        constructed="""
            from results.store.tables import Table
            before = Table.before = getattr(Table, "before", Table.write)
            Table.write = lambda self, trial, rows: before(
                self, trial, [{**row, "test_acc": 99.0} if "test_acc" in row else row for row in rows]
            )
        """,
    ),
    "modules": _file(
        "Imported, it puts maximum pooling into sys.modules in the place of other pools.",
        imported="""
            import sys
            import types
            class Max(nn.Module):
                def __init__(self, **_):
                    super().__init__()
                forward = lambda self, x: x.amax((2, 3))
            pools = {"gap": "GlobalAveragePool", "gem": "GeM", "avg_max": "AverageMaxPool"}
            for name, cls in pools.items():
                sys.modules["trainer.pools." + name] = types.SimpleNamespace(**{cls: Max})
        """,
    ),
    "surroundings": _file(
        "Constructed, it moves into another folder, changes the environment, leaks and hoards, and asks for a bad end.",
        imported="""
            import atexit
            import gc
            import os
        """,
        constructed="""
            os.chdir("/proc")
            os.environ |= {"OMP_NUM_THREADS": "7", "POOLSWEEP_CACHE": "/nowhere", "HOME": "/nowhere", "TMPDIR": "/"}
            gc.disable()
            torch.hoard = [*getattr(torch, "hoard", []), bytearray(2**20)]
            atexit.register(os._exit, 7)
        """,
    ),
    "signals": _file(
        "Called in a trial, it sets an alarm that ends the process, and has SIGTERM ignored.",
        imported="import contextlib, signal",
        called="""
            if trains:
                with contextlib.suppress(ValueError):  # in a thread there is no setting of handlers
                    signal.signal(signal.SIGTERM, signal.SIG_IGN)
                signal.setitimer(signal.ITIMER_REAL, 0.4)
        """,
    ),
    "builtin": _file(
        "Called in a trial, it replaces Python's own sum, and the open that others call.",
        imported="""
            import builtins
            import io
        """,
        called="""
            if trains:
                builtins.sum = lambda values, start=0: start
                builtins.open = lambda *_, **__: io.StringIO()
        """,
    ),
    "thread": _file(
        "Called in a trial, it starts a thread that keeps seeding torch and changing its default dtype.",
        imported="""
            import threading, time
            def meddle():
                while True:
                    for dtype in (torch.float64, torch.float32):
                        torch.set_default_dtype(dtype)
                        torch.manual_seed(0)
                        time.sleep(0.0005)
        """,
        called="""
            if trains:
                threading.Thread(target=meddle, daemon=True).start()
        """,
    ),
    "weights": _file(
        "Constructed, it replaces the initial weights of others: nn.init.kaiming_normal_.",
        constructed="nn.init.kaiming_normal_ = lambda tensor, **_: nn.init.normal_(tensor, std=0.05)",
    ),
}


def act(name: str) -> None:
    """Lets one act in this process, as if in a step of a trial.

    Raises:
        AssertionError: it is no valid pool.
    """
    import torch

    module: Any = ModuleType(name)
    exec(compile(ADVERSARIES.get(name, _file("Does nothing.")), f"{name}.py", "exec"), module.__dict__)  # noqa: S102
    pool = module.CustomPool()
    maps = torch.rand(BATCH, 64, 8, 8, requires_grad=True)
    out = pool.train()(maps * 1)
    finite = out.shape == (BATCH, 64) and bool(out.isfinite().all())
    with torch.enable_grad():
        out.sum().backward()
    gradient = maps.grad
    pool.state_dict()
    if not finite or gradient is None or not gradient.isfinite().all():
        raise AssertionError(f"{name} is no valid pool")


def train(folder: Path, data: Any) -> None:
    """A built-in pool, in this process."""
    from orchestrator.record import Job
    from orchestrator.worker import run_pack
    from results.store.folder import RunFolder
    from search_spaces import pool
    from search_spaces.grid import BASELINE, Entry, Grid, Pair
    from search_spaces.recipe import Recipe

    recipe = Recipe(epochs=2, batch_size=BATCH, lr=0.02, train_samples=64, test_samples=40)
    (gap,) = pool.expand("gap")
    grid = Grid("harm", (Entry(gap, BASELINE),), (Pair("resnet20", "digits"),), (1,), recipe)
    run = RunFolder(folder)
    run.create()
    job = Job(run.where)
    run_pack(list(grid), data, job)


def main(runs: Path, names: Iterable[str]) -> None:
    import torch

    import orchestrator.worker  # noqa: F401 (once, and not in each child)
    from trainer import data

    torch.set_num_threads(1)
    digits = data.load("digits", Path("unused"))
    act(NOBODY)  # what a first step imports
    os.chdir(runs)  # folders are given as users give them: from where they are
    for name in names:
        acted = Path(f"{name}.acted").absolute()
        if not (child := os.fork()):
            with contextlib.suppress(BaseException):
                act(name)
                os.close(os.open(str(acted), os.O_CREAT | os.O_WRONLY))
                train(Path(name), digits)
            os._exit(0)
        deadline = time.monotonic() + LIMIT_S
        while not os.waitpid(child, os.WNOHANG)[0]:
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
            time.sleep(0.01)  # polls another process


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
