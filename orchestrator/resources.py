"""What a trial asks for against what the machines have: compared before anything waits for ever."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from search_spaces import machine
from search_spaces.errors import Problem, RequestError, did_you_mean

if TYPE_CHECKING:
    from search_spaces.space import Resources  # 0.06 s, which no worker needs


@dataclass(frozen=True, slots=True)
class Node:
    """A machine: what Ray may hand out on it.

    Attributes:
        accelerator_type: what its GPUs are, in Ray's words (`H100`); empty if it has none for them; None
            before it was asked.
        name: for people.
        id: Ray's; empty before it was started.
        head: whether the cluster itself is run from there.
    """

    cpus: int
    gpus: int
    accelerator_type: str | None = None
    name: str = "this machine"
    id: str = ""
    head: bool = False


@dataclass(frozen=True, slots=True)
class Share:
    """What Ray reserves for a process: a trial, or a pack of them.

    Attributes:
        accelerator_type: what the GPUs have to be; None: any.
        avoids: the id of the node that takes none, if there is one: the head, where other nodes can.
    """

    cpus: int
    gpus: int
    accelerator_type: str | None = None
    avoids: str | None = None

    def fits(self, node: Node) -> bool:
        """Return whether the node is large enough, and may take it."""
        enough = node.cpus >= self.cpus and node.gpus >= self.gpus
        return enough and node.id != self.avoids and self.accelerator_type in (None, node.accelerator_type)


def this_machine(gpus: int) -> Node:
    """Return this machine, with the CPUs that the affinity mask of this process leaves of it."""
    return Node(machine.cores(), gpus)


def slow_precision(precision: str, archs: Iterable[str], cpu_bf16: bool) -> str | None:
    """Return why a precision is a bad choice on a CPU, if it is; it is part of the recipe, so never changed."""
    if precision == "tf32":
        return "tf32 makes no difference on a CPU: it computes in fp32, and the trials are not those of fp32"
    if precision == "bf16" and not cpu_bf16:
        return "bf16 is slower than fp32 on this CPU, which has no instructions for it"
    if precision == "bf16" and "mobilenetv2_s32" in archs:
        return "bf16 is slower than fp32 for mobilenetv2_s32 on a CPU, two to three times: its depthwise layers are"
    return None


def share(asked: Resources, nodes: Sequence[Node]) -> Share:
    """Return what a trial gets on these nodes.

    Raises:
        RequestError: no node has what one trial asks for. Ray would wait for such a node for ever, looking healthy.
    """
    # One GPU is what any space asks for by default, and no laptop should need another file for having none.
    without_gpu = asked.gpus_per_trial == 1 and not any(node.gpus for node in nodes)
    gpus = 0 if without_gpu else asked.gpus_per_trial
    each = Share(asked.cpus_per_trial, gpus, asked.accelerator_type if _known(nodes) else None)
    fitting = [node for node in nodes if each.fits(node)]
    problems = list(_problems(asked, gpus, nodes))
    if not problems and not fitting:
        kind = f" {each.accelerator_type}" if each.accelerator_type else ""
        what = f"no node has {gpus}{kind} GPUs and {asked.cpus_per_trial} CPUs at once"
        problems.append(Problem("resources", what))
    if problems:
        raise RequestError(problems)
    if gpus or asked.on_head or all(node.head for node in fitting):
        return each
    # What is computed on the head's CPUs is taken from Ray's own processes and from the driver, and a node that dies of
    # its trials can be replaced, unless it is this one.
    return dataclasses.replace(each, avoids=next((node.id for node in nodes if node.head), None))


def _problems(asked: Resources, gpus: int, nodes: Sequence[Node]) -> Iterator[Problem]:
    most = "expected {} at most, the most that a node has, got {}"
    if gpus > (most_gpus := max((node.gpus for node in nodes), default=0)):
        what = f"{most.format(most_gpus, gpus)}; a trial computes on one: give 1"
        yield Problem("resources.gpus_per_trial", what)
    if asked.cpus_per_trial > (most_cpus := max((node.cpus for node in nodes), default=0)):
        yield Problem("resources.cpus_per_trial", most.format(most_cpus, asked.cpus_per_trial))
    if gpus > 1 and asked.trials_per_gpu != 1:
        what = f"expected 1 beside gpus_per_trial {gpus}, got {asked.trials_per_gpu}"
        yield Problem("resources.trials_per_gpu", what)
    if wanted := asked.accelerator_type:
        with_gpus = [node for node in nodes if node.gpus]
        types = {node.accelerator_type for node in with_gpus if node.accelerator_type}
        what = ""
        if asked.gpus_per_trial == 0:
            what = f"nothing beside gpus_per_trial 0, which asks for no GPU, got {wanted}; take one of them out"
        elif not with_gpus:
            what = f"a GPU of type {wanted}, got a node without any; without this key trials run on the CPU"
        elif _known(nodes) and wanted not in types:
            among = did_you_mean(wanted, types) if types else "none, as far as Ray can tell"
            what = f"a GPU of type {wanted}, and no node has one; {among}"
        if what:
            yield Problem("resources.accelerator_type", f"expected {what}")


def _known(nodes: Sequence[Node]) -> bool:
    """Whether Ray has been asked of what type GPUs are."""
    return all(node.accelerator_type is not None for node in nodes)
