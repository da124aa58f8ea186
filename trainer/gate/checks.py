"""What a pool must be, checked on the CPU before any GPU is asked for; and a suite for the tests of your own pool.

    from trainer.gate import checks

    @pytest.mark.parametrize("check", checks.ALL, ids=str)
    def test_my_pool(check):
        check(MyPool)  # the class, or a function that makes one; or a name: "gem(p=1)", "my_pool.py"

A pool maps [B, C, H, W] to [B, C] with finite values and gradients, as a function of its input, its weights and torch's
generators, and of nothing else. Each check is named, says which input showed a fault, why it matters and how it is
usually mended. A finding that would spoil the trials that were asked for refuses the pool; the others are notes.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import itertools
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from search_spaces.errors import first_line
from search_spaces.pool import Pool, expand
from trainer import compat, user_module
from trainer.device.graphs import TENSOR, attributes
from trainer.gate.case import BATCH, Case, Shape, forward
from trainer.gate.reads import MEND
from trainer.gate.report import Finding
from trainer.randomness import Noise, Purpose, same, seeded

SHAPES = ("resnet20", "vgg16bn", "mobilenetv2", "mobilenetv2_s32")  # 64x8x8, 512x1x1, 1280x4x4, 1280x1x1
KINDS = ("random", "constant", "zero", "large")
OTHER_SIZES = ((1, 1), (8, 8), (7, 5), (1, 3))
WAITS_S = 0.003  # a GPU trains a batch of VGG-16 in less


def check(case: Case) -> list[Finding]:
    """Return what is wrong with a pool in an architecture, each check's first finding. Runs the pool's code."""
    if findings := list(ALL[0].findings(case)):
        return findings
    first: dict[str, Finding] = {}
    for one in ALL[1:]:
        for finding in one.findings(case):
            first.setdefault(finding.check, finding)
    return list(first.values())


def _structure(case: Case) -> Iterator[Finding]:
    """Whether it can be built and run, and what comes out has the right form: without that nothing else means much."""
    try:
        module = case.construct()
    except (Exception, SystemExit) as error:
        missing = isinstance(error, ModuleNotFoundError)
        yield Finding("import" if missing else "build", "construction", _spell_error(error), _mend_of_building(error))
        return
    if not isinstance(module, nn.Module):
        yield Finding("build", "construction", f"it is a {type(module).__name__}", "Derive it from torch.nn.Module.")
        return
    where = _place(case, mode="evaluation")
    try:
        with torch.no_grad():
            yield from _form(module.eval()(case.maps()), case.maps(), where)
    except (Exception, SystemExit) as error:
        yield failure(where, error)


def _mend_of_building(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError):
        return "Install it; a module of your own goes beside the pool's file, from where it travels along."
    if "NVIDIA" in str(error) or "CUDA" in str(error):
        return "It is made where the trainer moves it from: name no device, and in forward take x.device."
    if isinstance(error, OSError) and str(error.filename).startswith(f"{user_module.folder()}/"):
        return MEND
    return "The file must import, and the class be built from its params alone."


def _form(out: Any, maps: Tensor, where: str) -> Iterator[Finding]:
    wanted = maps.shape[:2]
    if not isinstance(out, Tensor):
        yield Finding("shape", where, f"it returns a {type(out).__name__}", "Return one tensor, [B, C].")
    elif out.shape != wanted:
        what = f"it returns {list(out.shape)}, and [B, C] is {list(wanted)}"
        yield Finding("shape", where, what, "Reduce both spatial dimensions and keep the channels: .flatten(1).")
    elif out.dtype != maps.dtype and not (maps.dtype == torch.bfloat16 and out.dtype == torch.float32):
        yield Finding("dtype", where, f"{maps.dtype} comes back as {out.dtype}", "End with .to(x.dtype).")


# The checks


def _finite(case: Case) -> Iterator[Finding]:
    """Values and gradients of a training step, on every kind of map."""
    for kind in KINDS:
        yield from _step(case, kind)


def _finite_in_bf16(case: Case) -> Iterator[Finding]:
    with torch.autocast("cpu", torch.bfloat16):
        found = next((finding for kind in KINDS for finding in _step(case, kind, dtype=torch.bfloat16)), None)
    if finding := found:
        yield finding if case.half else _note(finding, "bf16", "The recipe's precision is another")


def _other_sizes(case: Case) -> Iterator[Finding]:
    for size, kind in itertools.product(OTHER_SIZES, ("random", "constant")):
        for finding in _step(case, kind, shape=(case.shape[0], *size)):
            yield _note(finding, "other-size", f"{case.arch} has no such map, other architectures may")
            return


def _step(case: Case, kind: str, shape: Shape | None = None, dtype: torch.dtype = torch.float32) -> Iterator[Finding]:
    mode = "training" if dtype == torch.float32 else "training under bf16 autocast"
    where = _place(case, kind, mode, shape)
    try:
        yield from _forward_and_backward(case.build(shape=shape), case.maps(kind, shape).to(dtype), where)
    except (Exception, SystemExit) as error:
        yield failure(where, error)


def _forward_and_backward(module: nn.Module, maps: Tensor, where: str) -> Iterator[Finding]:
    out, inputs = forward(module.train(), maps)
    if wrong := next(_form(out, maps, where), None):
        yield wrong
    elif not out.isfinite().all():
        mend = "Over one position std(unbiased) is NaN: use correction=0; under roots and logarithms, add an epsilon."
        if maps.abs().max() > 100:
            mend = "float16 ends at 65504, and exp overflows float32 from 89 on: stay in float32, shift by the maximum."
        yield Finding("finite-output", where, "its output is not finite, and the loss would be NaN", mend)
    elif not out.requires_grad:
        what = "no gradient reaches the backbone, which would keep its random weights"
        yield Finding("gradient", where, what, "Take out .detach(), .data, torch.no_grad() and numpy.")
    else:
        out.float().sum().backward()
        named = {"input": inputs.grad} | {f"parameter {name}": p.grad for name, p in module.named_parameters()}
        if broken := [name for name, grad in named.items() if grad is not None and not grad.isfinite().all()]:
            mend = "A root has no gradient at zero and x/|x| none at the origin: add an epsilon inside."
            yield Finding("finite-gradient", where, f"the gradient of {', '.join(broken)} is not finite", mend)


def _evaluation(case: Case) -> Iterator[Finding]:
    """In evaluation a pool is a function of one image and the weights."""
    module, maps, where = case.build().eval(), case.maps(), _place(case, mode="evaluation")
    before, given = copy.deepcopy(module.state_dict()), maps.clone(memory_format=torch.preserve_format)
    with torch.no_grad():
        out = module(given)
        if not _same(given, maps):
            what = "it changes its input in place, which the backbone's backward still needs"
            yield Finding("in-place", where, what, "No relu_(), no x += ..., or work on a copy: x = x.clone().")
        after = module.state_dict()
        if changed := [name for name in after if name not in before or not _same(before[name], after[name])]:
            what = f"{', '.join(changed)} change while it is evaluated, so the test set would train it"
            yield Finding("eval-state", where, what, "Update statistics only if self.training.")
        if not _same(module(maps.clone()), out):
            what = "two evaluations of one input differ, and so would the test accuracies of one network"
            yield Finding("eval-noise", where, what, "Draw random numbers only if self.training, and keep no state.")
            return
        alone = torch.cat([module(maps[i : i + 1]) for i in range(len(maps))])
        if not _close(alone, out):
            what = f"an image's output depends on the others of its batch, by {_gap(alone, out):.2g}"
            yield Finding("batch-independence", where, what, "Reduce over dimensions 2 and 3, never over 0.")
        if not _close(packed := module(maps.contiguous()), out):
            what = f"its output depends on the memory layout of its input, by {_gap(packed, out):.2g}"
            yield Finding("memory-layout", where, what, "Use flatten and reshape, not as_strided.")


def _training(case: Case) -> Iterator[Finding]:
    """A training step is a function of the input, the weights and the seed."""
    module, where = case.build().train(), _place(case)
    saved, held = copy.deepcopy(module.state_dict()), attributes(module)
    known = set(map(id, module.parameters()))
    outs: list[Tensor] = []
    drawn = on_host = ()
    for _ in range(3):
        module.load_state_dict(saved)
        with seeded(0, Purpose.NOISE):
            drawn = Noise.host_state()[1:]
            outs.append(forward(module, case.maps())[0])
            on_host = Noise.host_state()[1:]
        if late := [name for name, parameter in module.named_parameters() if id(parameter) not in known]:
            what = f"{', '.join(late)} come to life after the dry pass, where the optimizer does not know them"
            yield Finding("late-parameter", where, what, "Make them in __init__, or in the first forward.")
            return
    outs[-1].float().sum().backward()
    if idle := [name for name, parameter in module.named_parameters() if parameter.grad is None]:
        what = f"{', '.join(idle)} receive no gradient, so they stay as they are"
        yield Finding("idle-parameter", where, what, "Use them in forward, or take them out.", refused=False)
    if not all(_same(out, outs[0]) for out in outs):
        what = "one input, one set of weights and one seed give several outputs: no trial could be repeated or resumed"
        mend = "Keep state in buffers, changed in place, and draw from torch's own generator, which is seeded."
        yield Finding("repeatability", where, what, mend)
    slower = "so that a step cannot be a CUDA graph, and is slower"
    changed = {name: value for name, value in attributes(module).items() if held.get(name) != value}
    if plain := [name for name, value in changed.items() if TENSOR not in value]:
        what = f"{', '.join(plain)} change from step to step in Python, {slower}"
        yield Finding("python-state", where, what, "Make it a buffer, and change it in place.", refused=False)
    elif changed:
        what, mend = f"{', '.join(changed)} are bound anew in every step, {slower}", "Copy into a buffer what you keep."
        yield Finding("rebinding", where, what, mend, refused=False)
    if not same(drawn, on_host):
        what = f"it draws random numbers on the CPU, {slower}"
        yield Finding("host-noise", where, what, "Draw with torch, on x.device.", refused=False)


def _checkpoints(case: Case) -> Iterator[Finding]:
    """A trial that is resumed must be the one that was stopped."""
    module, other, where = case.build(seed=0), case.build(seed=1), _place(case, mode="evaluation")
    mend = "Keep tensors as nn.Parameter or register_buffer and modules in nn.ModuleList, all of them from the start."
    try:
        other.load_state_dict(module.state_dict())
    except RuntimeError as error:
        what = f"its state_dict does not go into a fresh one ({first_line(error)}), so no trial could be resumed"
        yield Finding("state-dict", where, what, mend)
        return
    with torch.no_grad():
        outs = [each.eval()(case.maps()) for each in (module, other)]
    if not _same(*outs):
        what = "with the state_dict of another it computes something else: weights stand outside of it"
        yield Finding("state-dict", where, what, mend)


def _manners(case: Case) -> Iterator[Finding]:
    """What it does beside computing."""
    module, said, waited = case.build().train(), io.StringIO(), []
    for _ in range(5):
        wall, worked, gave_way = time.perf_counter(), time.process_time(), _gave_way()
        with contextlib.redirect_stdout(said):
            forward(module, case.maps())[0].float().sum().backward()
        idle = (time.perf_counter() - wall) - (time.process_time() - worked)
        waited.append(idle if _gave_way() > gave_way else 0.0)
    if printed := said.getvalue().strip():
        what = f"it prints in forward ({printed.splitlines()[0][:40]!r}), 94,000 times in a trial on CIFAR-100"
        yield Finding("prints", _place(case), what, "Take the print out.")
    if min(waited) > WAITS_S:  # in each call: something else may well happen in one
        what = f"it waits for {1000 * min(waited):.0f} ms in each call: it sleeps, or reads from a disk or a network"
        yield Finding("waits", _place(case), what, "Take that out of forward; a step has a few milliseconds.")


def _gave_way() -> int:
    """How often this process has gone to sleep by itself: a loaded machine that takes the core away does not count."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw


def _device(case: Case) -> Iterator[Finding]:
    """What would stay behind when the network moves to a GPU. Needs none: fake tensors say where they are."""
    module, where = case.build().train(), _place(case, mode="training on a GPU")
    mend = "Use nn.Parameter, register_buffer and nn.ModuleList, and make new tensors with device=x.device."
    before = dict(_out_of_reach(module))
    forward(module, case.maps())
    kept = [name for name, held in _out_of_reach(module) if before.get(name) == held]  # not what each step puts there
    if kept:
        what = f"{', '.join(kept)} stay on the CPU, and out of checkpoints and of the optimizer, when the network moves"
        yield Finding("device", where, what, mend)
        return

    def run(empty: Callable[..., Tensor]) -> Any:
        tensors = itertools.chain(module.named_parameters(), module.named_buffers())
        state = {name: empty(tensor.shape, dtype=tensor.dtype) for name, tensor in tensors}
        maps = empty((BATCH, *case.shape))
        out = torch.func.functional_call(module, state, (maps,))
        return out.device if isinstance(out, Tensor) and out.device != maps.device else None

    with contextlib.suppress(Exception):  # whatever else fake tensors cannot do, real ones may
        try:
            if elsewhere := compat.on_fake_gpu(run):
                yield Finding("device", where, f"its output is on the {elsewhere.type}", mend)
        except compat.HostSyncError:
            what = "it looks at a value on the GPU from Python, so that every step waits for it, and is slower"
            hint = "No .item(), no `if` on a tensor, no indexing by a mask."
            yield Finding("host-sync", where, what, hint, refused=False)
        except compat.MixedDevicesError as error:
            yield Finding("device", where, f"it mixes tensors of the GPU and of the CPU: {first_line(error)}", mend)


_OWN = frozenset(vars(nn.Module()))


def _out_of_reach(module: nn.Module) -> Iterator[tuple[str, int]]:
    """Tensors and modules that `module.to` does not find, by name and identity. A scalar may be on any device."""
    for path, part in module.named_modules():
        for key in vars(part).keys() - _OWN:
            for item in _items(vars(part)[key]):
                if isinstance(item, nn.Module) or (isinstance(item, Tensor) and item.dim() > 0):
                    yield f"{path}.{key}".lstrip("."), id(item)


def _items(value: object) -> Iterable[object]:
    """What a list, a tuple or a mapping holds; anything else alone."""
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, (list, tuple)) else (value,)


class CheckFailed(AssertionError):  # noqa: N818 - what a test raises
    """What a check found; the message says which input showed it, why it matters and how it is usually mended."""


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing that a pool must do. Called with a pool, it raises if the pool does not; it runs the pool's code."""

    name: str
    look: Callable[[Case], Iterable[Finding]]

    def __str__(self) -> str:
        return self.name

    def findings(self, case: Case) -> Iterator[Finding]:
        """Give what is wrong, and that the pool raises if it does."""
        try:
            yield from self.look(case)
        except (Exception, SystemExit) as error:
            yield failure(_place(case), error)

    def __call__(
        self, pool: str | Pool | Callable[..., nn.Module], archs: Iterable[str] = SHAPES, *, notes: bool = False
    ) -> None:
        """Check a pool where each architecture puts it: by default one for each form of a feature map.

        Args:
            pool: a name or a file as on the command line, or a function that makes the module.
            notes: whether what is only worth a note fails too.

        Raises:
            CheckFailed: with all that was found.
        """
        pools = expand(pool) if isinstance(pool, str) else [pool]
        cases = [Case(one, arch) for one in pools for arch in archs]
        found = [each for case in cases for each in self.findings(case) if each.refused or notes]
        if found:
            raise CheckFailed("\n".join(f"{each.check}: {each}" for each in found))


ALL = (
    Check("structure", _structure),
    Check("finite", _finite),
    Check("finite in bf16", _finite_in_bf16),
    Check("evaluation", _evaluation),
    Check("training", _training),
    Check("checkpoints", _checkpoints),
    Check("manners", _manners),
    Check("device", _device),
    Check("other sizes", _other_sizes),
)


def failure(where: str, error: BaseException, check: str = "run") -> Finding:
    """Return what a pool raises, as a finding."""
    return Finding(check, where, _spell_error(error), "Forward and backward must work there.")


def _note(finding: Finding, check: str, why: str) -> Finding:
    return dataclasses.replace(finding, check=check, what=f"{finding.what} ({why})", refused=False)


def _place(case: Case, kind: str = "random", mode: str = "training", shape: Shape | None = None) -> str:
    size = [BATCH, *(shape or case.shape)]
    return f"{'a map' if shape else case.arch + chr(39) + 's feature map'} {size}, {kind} values, {mode}"


def _close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-4, atol=1e-5, equal_nan=True)


def _gap(one: Tensor, other: Tensor) -> float:
    return (one - other).abs().max().item()


def _same(one: Tensor, other: Tensor) -> bool:
    """To the bit, where NaN is NaN."""
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


def _spell_error(error: BaseException) -> str:
    return f"it raises {type(error).__name__}: {first_line(error)}"
