"""What the gate found out about a pool in an architecture, as plain data, and how to show it. Imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from trainer import plain
from trainer.pool import Pool
from trainer.problems import Problem, RequestError

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

    def problem(self, pool: Pool) -> Problem:
        return Problem(f"pool {pool.label}, check {self.check}", f"on {self.shown_by}: {self.what}. {self.mend}")


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
class Examination:
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

    def with_findings(self, more: Sequence[Finding]) -> Examination:
        """The same, and these beside; of a pool that is refused, only why."""
        findings = (*self.findings, *more)
        if any(finding.refused for finding in more):
            return Examination(self.pool, self.arch, findings)
        return dataclasses.replace(self, findings=findings)

    @classmethod
    def of(cls, pool: Pool, arch: str, found: Mapping[str, Any]) -> Self:
        """From `found_dict`, as it comes back from another process."""
        return cls(
            pool,
            arch,
            tuple(Finding(**finding) for finding in found["findings"]),
            Cost(**found["cost"]) if found["cost"] else None,
            tuple(found["outputs"]),
            tuple(found["parting"]),
        )

    def found_dict(self) -> dict[str, Any]:
        """All but the pool and the architecture, as plain data."""
        return {
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "cost": dataclasses.asdict(self.cost) if self.cost else None,
            "outputs": list(self.outputs),
            "parting": list(self.parting),
        }


@dataclass(frozen=True, slots=True)
class SameFunction:
    """Pools that compute one function in an architecture, at initialisation.

    Attributes:
        pools: their labels.
        parting: {label: the parameters that may part it from the others later}; not those that have none.
    """

    arch: str
    pools: tuple[str, ...]
    parting: Mapping[str, tuple[str, ...]]

    def __str__(self) -> str:
        """`vgg16bn: gap and mine start as the same function; learning may part mine by weight`."""
        learned = ", ".join(f"{pool} by {', '.join(names)}" for pool, names in self.parting.items())
        later = f"; learning may part {learned}" if learned else ", and nothing that they learn parts them: chance does"
        return f"{self.arch}: {', '.join(self.pools[:-1])} and {self.pools[-1]} start as the same function{later}"

    def to_dict(self) -> dict[str, Any]:
        parting = {pool: list(names) for pool, names in self.parting.items()}
        return {"arch": self.arch, "pools": list(self.pools), "parting": parting}

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """From `to_dict`, as it comes back from a file.

        Raises:
            RequestError: it is nothing that `to_dict` makes; says where.
        """
        pools = plain.each(plain.take(data, "pools", list), plain.line, "pools")
        parting = plain.take(data, "parting", Mapping)
        named = {plain.line(pool): tuple(plain.each(names, plain.line, "parting")) for pool, names in parting.items()}
        if len(pools) < 2:
            raise RequestError.of(f"found {len(pools)}, allowed are two and more", "pools")
        return cls(plain.name(data, "arch"), tuple(pools), named)


def same_function(examinations: Sequence[Examination]) -> list[SameFunction]:
    """The classes of two and more pools, by architecture."""
    classes: list[list[Examination]] = []
    for one in examinations:
        if not one.outputs:
            continue
        for members in classes:
            if members[0].arch == one.arch and np.allclose(members[0].outputs, one.outputs, TOLERANCE, TOLERANCE):
                members.append(one)
                break
        else:
            classes.append([one])
    return [
        SameFunction(
            members[0].arch,
            tuple(member.pool.label for member in members),
            {member.pool.label: member.parting for member in members if member.parting},
        )
        for members in sorted(classes, key=lambda members: members[0].arch)
        if len(members) > 1
    ]
