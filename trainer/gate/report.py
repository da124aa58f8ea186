"""What the gate found out about a pool in an architecture, as plain data, and how to show it. Imports no torch."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from search_spaces.equivalence import Equivalence
from search_spaces.errors import Problem, RequestError
from search_spaces.pool import Pool
from search_spaces.text import plain

# Two functions are one if no output differs by more, relative to its size: GeM at 1x1 is within 3e-7 of the identity.
TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True)
class Finding:
    """A check that a pool failed.

    Attributes:
        check: its name.
        shown_by: the input that showed it.
        what: was seen, and why that matters.
        mend: the usual one.
        refused: whether the pool may not be trained so; else it is a note.
    """

    check: str
    shown_by: str
    what: str
    mend: str
    refused: bool = True

    def __str__(self) -> str:
        return f"on {self.shown_by}: {self.what}. {self.mend}"

    def problem(self, pool: Pool) -> Problem:
        return Problem(f"pool {pool.label}, check {self.check}", str(self))


@dataclass(frozen=True, slots=True)
class Cost:
    """What a pool costs at an architecture's feature map.

    Attributes:
        parameters: of the pool; average pooling has none.
        flops: for each image, forward and backward, in convolutions and matrix products.
        time_ms: forward and backward of 128 images, on one thread of this CPU.
        times_gap: `time_ms` by that of average pooling, measured in turn.
    """

    parameters: int
    flops: int
    time_ms: float
    times_gap: float


@dataclass(frozen=True, slots=True)
class Validation:
    """A pool in an architecture.

    Attributes:
        outputs: samples of its function at initialisation, in evaluation and in training, on maps and with random
            numbers that are the same for every pool.
        parting: its parameters that change this function when they change.
    """

    pool: Pool
    arch: str
    findings: tuple[Finding, ...] = ()
    cost: Cost | None = None
    outputs: tuple[float, ...] = ()
    parting: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """`ok`, or the names of the checks that it failed."""
        return ", ".join(finding.check for finding in self.findings if finding.refused) or "ok"

    @property
    def refused(self) -> list[Problem]:
        """Why it may not be trained."""
        return [finding.problem(self.pool) for finding in self.findings if finding.refused]

    def is_same_function(self, other: Validation) -> bool:
        """Return whether both compute the same in one architecture, as far as their outputs tell."""
        if self.arch != other.arch or not (self.outputs and other.outputs):
            return False
        return np.allclose(self.outputs, other.outputs, TOLERANCE, TOLERANCE)

    def with_findings(self, more: Sequence[Finding]) -> Validation:
        """Return the same, and these beside; of a pool that is refused, only why."""
        findings = (*self.findings, *more)
        if any(finding.refused for finding in more):
            return Validation(self.pool, self.arch, findings)
        return dataclasses.replace(self, findings=findings)

    @classmethod
    def of(cls, pool: Pool, arch: str, found: Mapping[str, Any]) -> Self:
        """Return what `found_dict` was made of, as it comes back from another process."""
        findings = tuple(Finding(**finding) for finding in found["findings"])
        cost = Cost(**found["cost"]) if found["cost"] else None
        return cls(pool, arch, findings, cost, tuple(found["outputs"]), tuple(found["parting"]))

    def found_dict(self) -> dict[str, Any]:
        """Return all but the pool and the architecture, as plain data."""
        return {
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "cost": self.cost and dataclasses.asdict(self.cost),
            "outputs": self.outputs,
            "parting": self.parting,
        }


@dataclass(frozen=True, slots=True)
class Report:
    """What the gate found.

    Attributes:
        validations: of every pool in every architecture, in that order.
        gpus: that torch finds on this machine.
        cpu_bf16: whether its CPU has instructions for bfloat16.
        missing: private parts that its torch lacks, and what is lost without them, in words.
    """

    validations: Sequence[Validation]
    gpus: int = 0
    cpu_bf16: bool = False
    missing: Sequence[str] = ()

    @property
    def refused(self) -> list[Problem]:
        """Each once, however many architectures show it."""
        return self._problems(refused=True)

    @property
    def notes(self) -> list[Problem]:
        """Likewise, of pools that are refused nowhere."""
        return self._problems(refused=False)

    def _problems(self, refused: bool) -> list[Problem]:
        broken = {one.pool for one in self.validations if one.refused}
        found: dict[tuple[Pool, str, str], list[tuple[str, Finding]]] = {}
        for one in self.validations:
            for finding in one.findings:
                if finding.refused == refused and (refused or one.pool not in broken):
                    found.setdefault((one.pool, finding.check, finding.what), []).append((one.arch, finding))
        problems = []
        for (pool, _, _), ((_, first), *others) in found.items():
            problem = first.problem(pool)
            also = f" (the same on {', '.join(arch for arch, _ in others)})" if others else ""
            problems.append(dataclasses.replace(problem, what=problem.what + also))
        return problems

    def equivalences(self) -> list[Equivalence]:
        """Return the classes of two and more pools, by architecture."""
        classes: list[list[Validation]] = []
        for one in sorted(self.validations, key=lambda one: one.arch):
            alike = (members for members in classes if members[0].is_same_function(one))
            if members := next(alike, None):
                members.append(one)
            elif one.outputs:
                classes.append([one])
        return [
            Equivalence(
                members[0].arch,
                tuple(member.pool.label for member in members),
                {member.pool.label: member.parting for member in members if member.parting},
            )
            for members in classes
            if len(members) > 1
        ]

    def table(self) -> str:
        """Return what each pool costs in each architecture, and whether it may be trained there, in lines."""
        from rich import box  # here, because a worker does not need it
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD)
        for name in ("pool", "arch", "parameters", "FLOPs an image", "ms a batch of 128", "by gap", "verdict"):
            table.add_column(name, no_wrap=True, justify="left" if name in ("pool", "arch", "verdict") else "right")
        for pool, validations in itertools.groupby(self.validations, key=lambda one: one.pool):
            for one in validations:
                cost = ("",) * 4
                if one.cost:
                    time_ms, times_gap = f"{one.cost.time_ms:.2f}", f"{one.cost.times_gap:.1f}"
                    cost = (f"{one.cost.parameters:,}", f"{one.cost.flops:,}", time_ms, times_gap)
                table.add_row(pool.label, one.arch, *cost, one.verdict)
            table.add_section()
        return "\n".join(plain(table))

    def refuse(self) -> None:
        """Raise a RequestError if a pool is refused."""
        if self.refused:
            raise RequestError(self.refused)
