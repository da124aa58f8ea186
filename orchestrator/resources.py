"""What a trial asks for against what the machines have: compared before anything waits for ever."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer.problems import Problem, RequestError

if TYPE_CHECKING:
    from search_spaces.space import Resources  # with pydantic, which no worker needs


@dataclass(frozen=True, slots=True)
class Node:
    """A machine: what Ray may hand out on it."""

    cpus: int
    gpus: int


@dataclass(frozen=True, slots=True)
class Share:
    """What Ray reserves for a process: a trial, or a pack of them."""

    cpus: int
    gpus: int


def this_machine(gpus: int) -> Node:
    """This machine, of which Ray is told what the affinity mask of this process leaves of it."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Node(cpus, gpus)


def slow_precision(precision: str, archs: Iterable[str], cpu_bf16: bool) -> str | None:
    """Why a precision is a bad choice for trials on a CPU, if it is; it is part of the recipe, so never changed."""
    if precision == "tf32":
        return "tf32 makes no difference on a CPU: it computes in fp32, and the trials are not those of fp32"
    if precision == "bf16" and not cpu_bf16:
        return "bf16 is slower than fp32 on this CPU, which has no instructions for it"
    if precision == "bf16" and "mobilenetv2" in archs:
        return "bf16 is slower than fp32 for mobilenetv2 on a CPU, two to three times: its depthwise convolutions are"
    return None


def share(asked: Resources, nodes: Sequence[Node]) -> Share:
    """What a trial gets on these nodes.

    Raises:
        RequestError: no node has what one trial asks for. Ray would wait for such a node for ever, looking healthy.
    """
    most_gpus = max((node.gpus for node in nodes), default=0)
    most_cpus = max((node.cpus for node in nodes), default=0)
    problems = []
    # One GPU is what any space asks for by default, and no laptop should need another file for having none.
    gpus = 0 if most_gpus == 0 and asked.gpus_per_trial == 1 else asked.gpus_per_trial
    if gpus > most_gpus:
        what = f"found {gpus}, but no node has more than {most_gpus}; a trial computes on one: 1 is the useful value"
        problems.append(Problem("resources.gpus_per_trial", what))
    if asked.cpus_per_trial > most_cpus:
        what = f"found {asked.cpus_per_trial}, but no node has more than {most_cpus}"
        problems.append(Problem("resources.cpus_per_trial", what))
    if gpus > 1 and asked.trials_per_gpu != 1:
        problems.append(
            Problem("resources.trials_per_gpu", f"found {asked.trials_per_gpu} beside gpus_per_trial {gpus}")
        )
    if not problems and not any(node.gpus >= gpus and node.cpus >= asked.cpus_per_trial for node in nodes):
        what = f"no node has {gpus} GPUs and {asked.cpus_per_trial} CPUs at once"
        problems.append(Problem("resources", what))
    if problems:
        raise RequestError(problems)
    return Share(asked.cpus_per_trial, gpus)
