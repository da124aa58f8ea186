"""The plan of a sweep: the grid minus the trials that have ended.

A rerun, a resumed run, a grid with one more seed and a job that a cluster restarted are all this one code path.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from results import submissions
from results.store import schema
from results.store.folder import Ended, RunFolder
from search_spaces.errors import Problem, RequestError, did_you_mean
from search_spaces.grid import CANDIDATE, FILTERS, Planned
from search_spaces.pool import slug
from search_spaces.space import Space
from search_spaces.trial import CHANGES, PROTOCOL


@dataclass(frozen=True, slots=True)
class Plan:
    """What a sweep would do.

    Attributes:
        only, final: which part of the grid it is.
        planned: the trials asked for, in the order in which they run.
        ended: {trial id: how} of those that have ended; `todo` are the others.
        before: {trial id: its attempt} of those to do that failed or were refused before.
        withheld: how many trials of hidden pairs were left out: all, or in a final run those of candidates that are not
            submitted.
    """

    only: Mapping[str, Sequence[str]]
    final: bool
    planned: Sequence[Planned]
    ended: Mapping[str, Ended]
    todo: Sequence[Planned]
    before: Mapping[str, int | None]
    withheld: int

    def counts(self) -> Counter[str]:
        """Return {status: how many}, trials that have not ended as `missing`."""
        counts = Counter(one.status for one in self.ended.values())
        return counts + Counter(missing=len(self.todo))


def make_plan(
    space: Space,
    run: RunFolder,
    *,
    final: bool = False,
    retry_failed: bool = False,
    only: Mapping[str, Sequence[str]] | None = None,
) -> Plan:
    """Return the plan for a space on a run folder. Starts nothing, writes nothing, runs no candidate's code.

    Args:
        final: take hidden pairs too, for baselines and for submitted candidates.
        retry_failed: let failed and invalid trials count as not ended.
        only: {key of FILTERS: values}; trials that have none of them for any key are left out.

    Raises:
        RequestError: `only` leaves nothing, the folder holds trials of another recipe, or a candidate has more
            revisions than the space allows.
    """
    only = only or {}
    submitted = {pool.key for pool, _ in run.submissions.read().values()} if final else set()
    shown = space.grid.select(final=final, submitted=submitted)
    planned = space.grid.select(only, final=final, submitted=submitted) if only else shown
    if not planned:
        raise RequestError(_nothing_left(shown, only))
    known = run.ended()
    _refuse_other_protocols(run, {one.protocol for one in known.values()})
    _refuse_other_recipes(run, {one.recipe for one in known.values()}, space.grid.recipe.to_json())
    _refuse_over_budget(space, run)
    again = {schema.FAILED, schema.INVALID} if retry_failed else set()
    ids = [one.trial.id for one in planned]
    ended = {one: known[one] for one in ids if one in known and known[one].status not in again}
    todo = [one for one, trial_id in zip(planned, ids, strict=True) if trial_id not in ended]
    before = {one: known[one].attempt for one in ids if one in known and one not in ended}
    return Plan(only, final, planned, ended, todo, before, len(space.grid) - len(shown))


# What keeps it from being made


def _refuse_other_protocols(run: RunFolder, found: set[int]) -> None:
    with contextlib.suppress(RequestError):  # one that cannot be read is written anew
        found = found | {grid.protocol for grid in [run.space.read()] if grid}
    if max(found, default=0) > PROTOCOL:
        raise RequestError.of(
            f"the run folder {run} is of protocol {max(found)}, and this version trains protocol {PROTOCOL}: go on "
            "with the newer version that wrote it, or give another --out"
        )
    if min(found, default=PROTOCOL) < PROTOCOL:
        changed = "; ".join(CHANGES[protocol] for protocol in range(min(found) + 1, PROTOCOL + 1))
        raise RequestError.of(
            f"the run folder {run} is of protocol {min(found)}, and this version trains protocol {PROTOCOL}, in which "
            f"{changed}. One table must not mix the two: give another --out. What is in {run} stays as it is, and "
            "`python -m results` reads it as before"
        )


def _refuse_other_recipes(run: RunFolder, found: set[str], mine: str) -> None:
    for other in found - {mine}:
        raise RequestError.of(
            f"the run folder {run} holds trials of another recipe, {other}, where this space asks for {mine}; one "
            "table must not mix them: give another --out"
        )


def _refuse_over_budget(space: Space, run: RunFolder) -> None:
    """Every revision that is tried on the test set is a draw more from which the best is picked."""
    if space.test_budget is None:
        return
    problems = []
    candidates = [entry.pool for entry in space.grid.entries if entry.role == CANDIDATE]
    on_record = submissions.revisions(run)
    for name in dict.fromkeys(pool.name for pool in candidates):
        asked = {pool.key for pool in candidates if pool.name == name}
        trained = {key for key in on_record if key[0] == slug(name)}
        if len(asked | trained) > space.test_budget:
            what = (
                f"{len(trained)} revisions of {name} have been trained on these test sets, and this space asks for "
                f"{len(asked - trained)} more, where {space.test_budget} are allowed; take some out, or raise it and "
                "say so beside the table"
            )
            problems.append(Problem("test_budget", what))
    if problems:
        raise RequestError(problems)


def _nothing_left(shown: Sequence[Planned], only: Mapping[str, Sequence[str]]) -> list[Problem]:
    if not shown:
        what = "every pair is hidden, and those run with --final only, for baselines and for submitted candidates"
        return [Problem("pairs", what)]
    strange = []
    for key, values in only.items():
        known = {FILTERS[key](planned) for planned in shown}
        for value in values:
            if value not in known:
                strange.append(Problem(f"--only {key}={value}", f"no trial has it; {did_you_mean(value, known)}"))
    return strange or [Problem("--only", "no trial has all of these at once")]
