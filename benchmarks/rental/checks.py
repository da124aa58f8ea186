"""Stage `checks`: what is computed on this GPU is right, or the kernels that get it wrong are switched off.

All networks at once, each in a process of its own. Each check is a row with a truth, null while it goes on, and with a
number where there is one:

    layers      each convolution and batch norm as it trains in bf16, and in fp32, against the same in float64: outputs
                and all gradients, by the norm of the difference over the norm. bf16 may be 4e-3 off, or as far as
                torch's own bf16 three times over; fp32 2e-2, since rounding decides what a ReLU lets through of nothing
    parts       so each block, and each stage of blocks
    step        a whole step against the plain loop's in fp32, by how it moves the weights; bf16 as above
    twins       two trials that are one, side by side: equal in every digit
    alone       the same without a neighbour
    eager       the same without a graph
    poisoned    the same over memory that was full of NaN
    resumed     a second epoch from a checkpoint, and without one
    dropout     other masks for each step, by a batch that is seen twice at a learning rate of 0

What is wrong is done again in new processes: as it is, without each family of kernels, and without any. If it is still
wrong as it is, the family without which it passes is switched off: for all stages that follow (`off` in checks.json),
and for what its network has left to check, if that takes a new process, as it does after an illegal access. No process
has families switched on or off on its way, so that all that it compares was computed by the same ones.
"""

from __future__ import annotations

import copy
import functools
import io
import itertools
import os
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.plain import PlainTrainer
from benchmarks.rental import jobs, networks
from benchmarks.rental.plan import families_of
from benchmarks.rental.settings import Row, Settings, Sizes, read_json, write_json
from search_spaces import kernels, machine
from trainer import network
from trainer.archs.dropout import Dropout
from trainer.augment import Images
from trainer.device.execution import default_device, set_matmul_precision
from trainer.packs import take_turns
from trainer.train import Program

EXACT, HALF, FOLD = 2e-2, 4e-3, 3.0  # errors: of fp32; of bf16 where it is that small; by torch's own bf16
COLOURS = 3  # channels of images, for which nothing has a gradient
BLAMING_S = 30.0  # of the stage's time, to find out what is to blame
MODULE = "benchmarks.rental.checks"  # of the processes that check
BINDING = (nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.MaxPool2d)  # what belongs to the layer before it

State = list[Tensor]

_turns = threading.BoundedSemaphore(machine.cores())  # of processes that find out what is to blame


def main(settings: Settings) -> None:
    """Run the checks of every network, and keep what they have found so far in one file."""
    archs = settings.sizes.checked
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(len(archs)) as threads:
        files = {arch: Path(scratch) / f"{arch}.json" for arch in archs}
        running = [threads.submit(check_network, settings, arch, file) for arch, file in files.items()]
        going, rows, off = True, [], []
        while going:
            time.sleep(0.5)
            going = not all(one.done() for one in running)
            rows = [row for file in files.values() for row in read_json(file, [])]
            off = sorted({family for row in rows for family in row.get("off", [])})
            write_json(settings.result("checks.json"), {"off": off, "rows": rows})
        died = [arch for arch, one in zip(files, running, strict=True) if not one.result()]
    wrong = [f"{row['arch']} {row['check']}" for row in rows if not row["ok"]]
    print(f"{len(rows)} checks, wrong: {wrong or 'none'}; off: {off or 'nothing'}; died: {died or 'none'}")
    if died:
        raise SystemExit(1)


def check_network(settings: Settings, arch: str, file: Path) -> bool:
    """Run all checks of a network, in a new process after each that ended early; return whether none is left.

    Whenever a process ends, what it found wrong is blamed on families, without which the next one goes on.
    """
    off, rows, code = kernels.off(), list[Row](), 1
    while code:
        done = len(rows)
        code, rows = in_new_process(settings, arch, file, off)
        if code and len(rows) == done:
            return False
        wrong = [row for row in rows[done:] if not row["ok"]]
        for row, families in zip(wrong, blamed(settings, arch, [row["check"] for row in wrong], off), strict=True):
            if families:
                row["off"] = families
                off |= {*families}
            print(*(f"{key}={value}" for key, value in row.items()), flush=True)
        write_json(file, rows)
    return True


def in_new_process(
    settings: Settings, arch: str, file: Path, off: Collection[str], only: Sequence[str] = ()
) -> tuple[int, list[Row]]:
    """Have a process do the checks that the rows of a file lack, without some families; return its exit code, and rows.

    Args:
        only: the names of those to do; all if empty.
    """
    command = [sys.executable, "-u", "-m", MODULE, settings.to_json(), arch, str(file), *only]
    code = subprocess.run(command, env=os.environ | {kernels.SWITCH: ",".join(sorted(off))}, check=False).returncode
    rows = read_json(file, [])
    for row in rows:
        if row["ok"] is None:
            row |= {"ok": False, "error_said": f"its process ended with exit code {code}"}
    return code, rows


def blamed(settings: Settings, arch: str, wrong: Sequence[str], off: frozenset[str]) -> list[list[str]]:
    """Return for each of these checks the family without which it passes; all if it takes that; none if nothing helps.

    Nor is any to blame for what passes as it is, when it is done again.
    """
    if not wrong:
        return []
    families = [family for family in families_of(arch) if family not in off]
    tries = [[], *([family] for family in families), families]

    def passing(less: Sequence[str]) -> set[str]:
        with _turns, tempfile.TemporaryDirectory() as scratch:
            _, rows = in_new_process(settings, arch, Path(scratch) / "rows.json", off.union(less), wrong)
        return {row["check"] for row in rows if row["ok"]}

    with ThreadPoolExecutor(len(tries)) as threads:
        passed = list(threads.map(passing, tries))
    return [next((less for less, found in zip(tries, passed, strict=True) if check in found), []) for check in wrong]


def check(settings: Settings, arch: str, file: Path, only: Collection[str]) -> None:
    """Do the checks of a network that the rows of a file lack, parts first: what a wrong one is to blame on they tell.

    End early if the GPU is lost, about which nothing can be said in this process; or if something is wrong, and what is
    left of the time is needed to find out why.
    """
    device, rows = default_device(), read_json(file, [])
    checks = (one for one in all_checks(arch, settings.sizes, device) if not only or one[0] in only)
    first = len(rows)
    for name, run in itertools.islice(checks, first, None):
        if not only and settings.left < BLAMING_S and any(not row["ok"] for row in rows[first:]):
            raise SystemExit(f"{arch}: {name} has to wait until it is known what is to blame for what is wrong")
        began, row = time.time(), {"arch": arch, "check": name}
        write_json(file, [*rows, row | {"ok": None}])
        rows.append({**row, **attempted(run), "s": time.time() - began})
        write_json(file, rows)
        if not rows[-1]["ok"]:
            jobs.raise_if_lost()


def attempted(run: Callable[[], Row]) -> Row:
    try:
        found = run()
        jobs.raise_if_lost()
        return found
    except Exception as error:
        traceback.print_exc()
        return {"ok": False, "error_said": f"{type(error).__name__}: {error}"[:500]}


def all_checks(arch: str, sizes: Sizes, device: torch.device) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Yield them, those of what trains first: kernels for fp32 are compiled here, 20 s of them."""
    for precision, of_sizes in (("bf16", (sizes.batch, *sizes.lasts)), ("fp32", (sizes.batch,))):
        for size in of_sizes:
            for name, part, batch in itertools.chain(layers(arch, size, device), parts(arch, size, device)):
                what = f"{name} {precision}, {size} images"
                yield what, functools.partial(part_is_right, part, batch, precision)
            yield f"step {precision}, {size} images", functools.partial(step_is_right, arch, size, precision, device)
        if precision == "bf16":
            yield from equalities(arch, sizes, device)


# Against float64 and the plain loop


def layers(arch: str, size: int, device: torch.device) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Yield every different convolution and batch norm of a plain network, alone: in bf16 it rounds once, not often."""
    built = network.build(networks.trial(arch).pool, arch, 10, 1)
    found: dict[str, tuple[nn.Module, tuple[int, ...]]] = {}

    def note(layer: nn.Module, given: tuple[Tensor], out: Tensor) -> None:
        shapes = ["x".join(map(str, one.shape[1:])) for one in (given[0], out)]
        kernel = f" {layer.kernel_size[0]}/{layer.stride[0]}/{layer.groups}" if isinstance(layer, nn.Conv2d) else ""
        found.setdefault(f"{type(layer).__name__}{kernel} {shapes[0]} to {shapes[1]}", (layer, given[0].shape[1:]))

    hooks = [
        layer.register_forward_hook(note)  # type: ignore[arg-type]
        for layer in built.features.modules()
        if isinstance(layer, nn.Conv2d | nn.BatchNorm2d)
    ]
    with torch.no_grad():
        built.features(torch.zeros(2, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    numbers = torch.Generator().manual_seed(3)
    for name, (layer, shape) in found.items():
        x = (
            (torch.randn(size, *shape, generator=numbers) + 0.5)
            .to(device)
            .contiguous(memory_format=torch.channels_last)
        )
        alone = nn.Sequential(copy.deepcopy(layer)).to(device)
        yield name, alone.to(memory_format=torch.channels_last), x  # type: ignore[call-overload]


def parts(arch: str, size: int, device: torch.device) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Yield the parts of a plain network, each with what it is given there: no layer of ours reaches beyond one.

    Of a stage of blocks also the first two by themselves: over nine of them bf16 is 10 % off, whoever computes it.
    """
    built = network.build(networks.trial(arch).pool, arch, 10, 1).to(device)
    x = torch.randn(size, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(device)
    children = list(built.features.children())
    starts = [i for i, child in enumerate(children) if not isinstance(child, BINDING)] + [len(children)]
    for start, end in itertools.pairwise(starts):
        part = nn.Sequential(*children[start:end]).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = x.contiguous(memory_format=torch.channels_last)
        yield f"part {start}", part, x
        blocks = list(children[start].children()) if type(children[start]) is nn.Sequential else []
        inner = x
        for number, block in enumerate(blocks[:2]):
            yield f"part {start}.{number}", nn.Sequential(block), inner
            with torch.no_grad():
                inner = block(inner)
        with torch.no_grad():
            x = part(x)


SpeedUp = Callable[[nn.Module, str], Callable[[], None]]  # as `trainer.device.gpu.speed_up`


def part_is_right(part: nn.Module, x: Tensor, precision: str, speed_up: SpeedUp | None = None) -> Row:
    """Compare a part as it trains on a GPU, and torch's own, with float64; on a CPU its layers leave it to torch."""
    set_matmul_precision(precision)
    plain, ours = copy.deepcopy(part), copy.deepcopy(part)
    after = (speed_up or _speed_up)(ours, precision)
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    given = x.to(kind)
    exact = _results(copy.deepcopy(part).double(), given.double(), False, lambda: None)
    theirs = _worst(_results(plain, given, precision == "bf16", lambda: None), exact)
    found = _worst(_results(ours, given, precision == "bf16", after), exact)
    return {"ok": found <= _allowed(precision, theirs), "error": found, "of_torch": theirs}


def _speed_up(features: nn.Module, precision: str) -> Callable[[], None]:
    from trainer.device import gpu

    return gpu.speed_up(features, precision, kernels.off()).after_backward


def _results(part: nn.Module, x: Tensor, half: bool, after: Callable[[], None]) -> list[Tensor]:
    """Return outputs and gradients of one pass, forward and back, of a part that trains."""
    part.train()
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_(x.shape[1] > COLOURS)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
        out = part(x)
    slope = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16)  # the same for all
    out.backward(slope.to(out.device, out.dtype).contiguous(memory_format=torch.channels_last))
    after()
    gradients = [x.grad, *(parameter.grad for parameter in part.parameters())]
    return [out.detach(), *(gradient for gradient in gradients if gradient is not None)]


def _worst(found: list[Tensor], exact: list[Tensor]) -> float:
    """Return the largest relative error of any of them; infinite if one is missing or not finite."""
    if len(found) != len(exact):
        return float("inf")
    errors = [error_of(ours, theirs) for ours, theirs in zip(found, exact, strict=True)]
    return max(errors) if all(error == error for error in errors) else float("inf")


def error_of(found: Tensor, exact: Tensor) -> float:
    difference = torch.linalg.norm(found.double() - exact.double())
    return float(difference / torch.linalg.norm(exact.double()).clamp_min(1e-30))


def _allowed(precision: str, theirs: float) -> float:
    return max(HALF, FOLD * theirs) if precision == "bf16" else EXACT


def step_is_right(arch: str, size: int, precision: str, device: torch.device) -> Row:
    """Compare how a step moves the weights, and its loss, with a step of the plain loop in fp32."""
    told = networks.trial(arch, precision=precision, batch_size=size)
    images = networks.images(2 * size, size, device)
    draws = torch.zeros(size, 4, dtype=torch.int64)
    draws[:, 0] = torch.arange(size)
    labels = images.train_labels[:size]

    def plain(half: bool) -> list[Tensor]:
        net = _no_dropout(network.build(told.pool, arch, images.classes, told.seed)).to(device)
        trainer = PlainTrainer(net, networks.trial(arch, precision="bf16" if half else "fp32").recipe, device)
        before = [parameter.detach().clone() for parameter in net.parameters()]
        loss = trainer.step(images.normalise(_windows(images, draws, device)), labels)
        return [torch.tensor(loss), _moved(before, net)]

    exact = plain(half=False)
    theirs = _worst(plain(half=True), exact) if precision == "bf16" else 0.0
    program = Program(told, images, graphs=False)
    _no_dropout(program.network)
    before = [parameter.detach().clone() for parameter in program.network.parameters()]
    with program._execution.lane():
        program._draws[:size] = draws.to(device)
        program._train_batch(size)
    program._execution.synchronize()
    found = _worst([program._sums[0, 0].cpu() / size, _moved(before, program.network)], exact)
    return {"ok": found <= _allowed(precision, theirs), "error": found, "of_torch": theirs}


def _windows(images: Images, draws: Tensor, device: torch.device) -> Tensor:
    """Return the images of draws whose window starts at 0, 0, as bytes: what `crops` must have found."""
    padded = images._pixels.view(-1, images._area // images._row, images._row, images._pixels.shape[-1])
    return padded[draws[:, 0].to(device), :32, :32]


def _moved(before: list[Tensor], net: nn.Module) -> Tensor:
    return torch.cat([(now - then).flatten() for now, then in zip(net.parameters(), before, strict=True)]).detach()


def _no_dropout(net: Any) -> Any:
    for layer in net.modules():
        if isinstance(layer, Dropout):
            layer.p = 0.0
    return net


# Equal in every digit


def equalities(arch: str, sizes: Sizes, device: torch.device) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Compare programs of one trial, run in ways that must not matter."""

    told = networks.trial(arch, batch_size=sizes.batch, lr=0.01, epochs=2)

    @functools.cache
    def images() -> Images:
        return networks.images(sizes.steps * sizes.batch + sizes.lasts[0], sizes.evaluation, device)

    def made(**settings: Any) -> Program:
        return Program(told, images(), **settings)

    @functools.cache
    def pair() -> tuple[State, State]:
        one, other = made(), made()
        take_turns([one, other], 1)
        return _state(one), _state(other)

    @functools.cache
    def eager() -> State:
        return _run(made(graphs=False), 1)

    def poisoned() -> Row:
        expected = eager()  # while memory is as it was
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info()
            chunks = [torch.full((2**28,), float("nan"), device=device) for _ in range(int(min(free, 2**34) // 2**31))]
            small = [
                torch.full((size,), float("nan"), device=device) for size in (2**8, 2**12, 2**17) for _ in range(200)
            ]
            del chunks, small  # the allocator keeps them, and gives them out again
        return _equal(_run(made(graphs=False), 1), expected)

    def resumed() -> Row:
        whole = made()
        _run(whole, 1)
        saved = io.BytesIO()
        torch.save(whole.state(), saved)
        other = made()
        other.load_state(torch.load(io.BytesIO(saved.getvalue()), map_location="cpu", weights_only=True))
        return _equal(_run(other, 2), _run(whole, 2))

    yield "twins", lambda: _equal(*pair())
    yield "alone", lambda: _equal(_run(made(), 1), pair()[0])
    yield "eager", lambda: _equal(eager(), pair()[0], bitwise=False)
    yield "poisoned", poisoned
    yield "resumed", resumed
    yield "dropout", lambda: dropout_draws(made())


def _run(program: Program, epoch: int) -> State:
    take_turns([program], epoch)
    return _state(program)


def _state(program: Program) -> State:
    """Return all that an epoch leaves: weights, momentum, and the sums of losses and hits."""
    state = program.state()
    return [one.detach().clone() for one in (*state["network"].values(), *state["momentum"], program._sums)]


def _equal(found: State, expected: State, bitwise: bool = True) -> Row:
    """Whether two are equal in every digit; or, if they need not be, within 2e-2. NaN is equal to nothing."""
    equal = all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    floats = [(one, other) for one, other in zip(found, expected, strict=True) if one.is_floating_point()]
    error = max(error_of(one, other) for one, other in floats)
    return {"ok": equal if bitwise else error <= EXACT, "equal": equal, "error": error}


def dropout_draws(program: Program) -> Row:
    """Take a step twice over one batch at a learning rate of 0: with dropout the losses differ, without they do not."""
    execution, size = program._execution, program.trial.recipe.batch_size
    drops = any(isinstance(layer, Dropout) for layer in program.network.modules())
    losses = []
    for _ in range(2):
        with execution.lane():
            program._sums.zero_()
            program._load_draws(1)
            program.lr.zero_()
        for _ in execution.run(program._train_batch, [size]):
            pass
        execution.synchronize()
        losses.append(float(program._sums[0, 0]))
    differ = losses[0] != losses[1]
    return {"ok": differ == drops, "drops": drops, "losses": [loss / size for loss in losses]}


if __name__ == "__main__":
    told_to = Settings.from_json(sys.argv[1])
    if len(sys.argv) == 2:
        main(told_to)
    else:
        check(told_to, sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
