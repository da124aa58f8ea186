"""A sweep: the grid, minus the trials that have ended, run.

A rerun, a resumed run, a grid with one more seed and a job that a cluster restarted are all this one code path.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from orchestrator import environment, trackers
from orchestrator.packs import Pack, group, measured_sizes
from orchestrator.progress import Progress
from orchestrator.record import Job, refuse
from orchestrator.resources import Node, Share, share, slow_precision, this_machine
from orchestrator.shutdown import GRACE_S, Departure
from orchestrator.trackers import Trackers
from orchestrator.watcher import Watcher
from results import submissions
from results.store import schema
from results.store.folder import RunFolder
from results.store.lease import Lease
from search_spaces import machine
from search_spaces.errors import Problem, RequestError, did_you_mean, gather
from search_spaces.grid import BASELINE, CANDIDATE, Grid, Planned
from search_spaces.pool import slug
from search_spaces.space import Space
from search_spaces.trial import CHANGES, PROTOCOL
from trainer import data
from trainer.data import Dataset
from trainer.gate import Gate
from trainer.gate.report import Cost, Report

FILTERS: Mapping[str, Callable[[Planned], str]] = {
    "pool": lambda planned: planned.trial.pool.label,
    "arch": lambda planned: planned.trial.arch,
    "dataset": lambda planned: planned.trial.dataset,
    "seed": lambda planned: str(planned.trial.seed),
    "role": lambda planned: planned.role,
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What a sweep would do.

    Attributes:
        planned: the trials asked for, in the order in which they run.
        ended: {trial id: status} of those that have ended.
        todo: those that have not.
        withheld: how many trials of hidden pairs were left out: all, or in a final run those of candidates that are not
            submitted.
    """

    planned: Sequence[Planned]
    ended: Mapping[str, str]
    todo: Sequence[Planned]
    withheld: int

    def counts(self) -> Counter[str]:
        """{status: how many}, trials that have not ended as `missing`."""
        return Counter(self.ended.get(planned.trial.id, "missing") for planned in self.planned)


def make_plan(
    space: Space,
    run: RunFolder,
    *,
    final: bool = False,
    retry_failed: bool = False,
    only: Mapping[str, str] | None = None,
) -> Plan:
    """The plan for a space on a run folder. Starts nothing, writes nothing, runs no candidate's code.

    Args:
        final: hidden pairs too, for baselines and for submitted candidates.
        retry_failed: failed and invalid trials count as not ended.
        only: {key of FILTERS: value}; trials that differ in any are left out.

    Raises:
        RequestError: `only` leaves nothing, the folder holds trials of another recipe, or a candidate has more
            revisions than the space allows.
    """
    everything = list(space.grid)
    entries = {pool.key for pool, _ in run.submissions().values()} if final else set()
    shown = [p for p in everything if not p.hidden or (final and (p.role == BASELINE or p.trial.pool.key in entries))]
    planned = [p for p in shown if all(FILTERS[key](p) == value for key, value in (only or {}).items())]
    if not planned:
        raise RequestError(_nothing_left(shown, only or {}))
    known = run.ended()
    _refuse_other_protocols(run, {one.protocol for one in known.values()})
    _refuse_other_recipes(space, run, {one.recipe for one in known.values()})
    _refuse_over_budget(space, run)
    again = {schema.FAILED, schema.INVALID} if retry_failed else set()
    ids = [p.trial.id for p in planned]
    ended = {i: known[i].status for i in ids if i in known and known[i].status not in again}
    todo = [p for p, i in zip(planned, ids, strict=True) if i not in ended]
    return Plan(planned, ended, todo, len(everything) - len(shown))


def sweep(
    space: Space,
    run: RunFolder,
    plan: Plan,
    data_dir: Path,
    address: str,
    console: Console,
    leave_at: float = float("inf"),
) -> None:
    """Runs what is left of a plan; every trial of it has a row in the run folder afterwards.

    Args:
        leave_at: when to end early and in good order, by `time.monotonic`.

    Raises:
        RequestError: what keeps it from starting, all of it, and Ray was not started.
        KeyboardInterrupt: what has finished is on record, what runs goes on from its checkpoint next time.
        FolderError: likewise, and nothing more can be written.
    """
    local = address == "local"
    say = functools.partial(console.print, highlight=False, soft_wrap=True)
    names = sorted({planned.trial.dataset for planned in plan.todo})
    loads = [(f"dataset {name}", functools.partial(_load, name, data_dir, space, say)) for name in names]
    with Gate.over(space.grid) as gate:  # beside the loading, in processes of its own
        shares = [("", lambda: share(space.resources, [this_machine(gate.report.gpus)]))] if local else []
        refusals = [] if space.skip_invalid else [("", lambda: gate.report.refuse())]
        trained = sorted({planned.trial.dataset for planned in plan.planned})
        apart = ("", functools.partial(data.refuse_shared, trained, data_dir))
        loggers = ("loggers", functools.partial(trackers.check, space.loggers, run))
        claim = Lease(run, say)
        folder = [("", claim.check), ("", run.create)]
        try:
            loaded = gather(*loads, apart, *refusals, *folder, *shares, loggers)
        except RequestError:
            run.discard_if_empty()
            raise
        report = gate.report
    for note in report.notes:
        say(f"note: {note}")
    with claim:
        run.tidy()
        run.write_grid(space.grid)
        run.write_same_functions(report.equivalences())
        todo = _set_aside(plan.todo, report, run, say)
        if todo:
            loaded_data: dict[str, Dataset] = dict(zip(names, loaded, strict=False))
            _run(
                space, run, dataclasses.replace(plan, todo=todo), loaded_data, report, claim, address, console, leave_at
            )
        run.tidy()


def _set_aside(
    todo: Sequence[Planned], report: Report, run: RunFolder, say: Callable[[str], None]
) -> Sequence[Planned]:
    """The trials whose pools the gate lets pass; the others are marked as invalid."""
    refused = {(one.pool, one.arch): one.refused for one in report.validations if one.refused}
    for problem in report.refused:
        say(f"invalid: {problem}")
    passed = []
    for planned in todo:
        if problems := refused.get((planned.trial.pool, planned.trial.arch)):
            refuse(planned, "\n".join(map(str, problems)), run)
        else:
            passed.append(planned)
    return passed


def _run(
    space: Space,
    run: RunFolder,
    plan: Plan,
    data: Mapping[str, Dataset],
    report: Report,
    claim: Lease,
    address: str,
    console: Console,
    leave_at: float,
) -> None:
    environment.clear(address)
    # Only now: whoever mistypes a key must not wait ten seconds for Ray to hear of it.
    from orchestrator import cluster, ray_tune

    say = functools.partial(console.print, highlight=False, soft_wrap=True)
    say(f"starting Ray on {'this machine' if address == 'local' else address} ...")
    with run.ray_log() as log, cluster.connected(address, this_machine(report.gpus), log, say) as nodes:
        each = share(space.resources, nodes)
        _refuse_unseen(run, cluster.unseen_by([node for node in nodes if each.fits(node)], run))
        if not each.gpus and space.resources.gpus_per_trial:
            say(f"no GPU here: trials run on the CPU, {each.cpus} thread{'s' * (each.cpus > 1)} each")
        archs = {planned.trial.arch for planned in plan.todo}
        precision = space.grid.recipe.precision
        if not each.gpus and (warning := slow_precision(precision, archs, report.cpu_bf16)):
            say(f"warning: {warning}")
        job = Job(
            run.where,
            gpu=bool(each.gpus),
            threads=each.cpus,
            checkpoint_every=space.checkpoint_every,
            compiled=space.compiled,
            git_commit=machine.commit(),
            costs=_costs(space.grid, report),
            keep_weights=space.keep_weights,
            stall_timeout=space.stall_timeout,
            driver=claim.token,
        )
        packs = _packs(space, run, plan.todo, data, job, each, nodes, say)
        with (
            Trackers(space.loggers, run, space.grid.name, say) as logged,
            Progress(plan.todo, len(plan.planned) - len(plan.todo), console) as progress,
        ):
            watcher = Watcher(progress, job, claim, logged)
            departure = Departure(functools.partial(_ask_to_leave, claim, say), leave_at)
            start = functools.partial(
                ray_tune.run, space.grid, data=data, job=job, share=each, watcher=watcher, departure=departure
            )
            while packs:
                # Packs of several first. One that died twice is split: nobody knows whose fault it was.
                several, single = ([pack for pack in packs if (len(pack) > 1) is many] for many in (True, False))
                start(several or single, max_failures=1 if several else space.max_failures)
                packs = (single if several else []) + watcher.take_again()


def _ask_to_leave(claim: Lease, say: Callable[[str], None]) -> None:
    say(f"leaving: trials write checkpoints first, {GRACE_S:.0f} s at most; Ctrl-C again leaves at once")
    with contextlib.suppress(OSError):  # then they are ended when the time is up
        claim.ask_to_leave()


def _costs(grid: Grid, report: Report) -> dict[tuple[int, str], Cost]:
    entry = {each.pool: index for index, each in enumerate(grid.entries)}
    return {(entry[one.pool], one.arch): one.cost for one in report.validations if one.cost}


def _packs(
    space: Space,
    run: RunFolder,
    todo: Sequence[Planned],
    data: Mapping[str, Dataset],
    job: Job,
    each: Share,
    nodes: Sequence[Node],
    say: Callable[[str], None],
) -> list[list[Planned]]:
    """The trials that are to run, by the process that they run in. On the CPU each has its own."""
    from orchestrator import ray_tune

    asked = space.resources.trials_per_gpu
    if not each.gpus:
        return group(todo, lambda _: 1)
    gpus = sum(node.gpus // each.gpus for node in nodes if each.fits(node))
    if asked != "auto":
        return group(todo, lambda _: asked, gpus)

    def measure(pack: Pack) -> list[dict[str, Any]]:
        return ray_tune.on_worker("measure", each, pack, data[pack[0].trial.dataset], job)

    sizes = measured_sizes(todo, run, ray_tune.on_worker("device_name", each, job), measure, say)
    return group(todo, sizes.__getitem__, gpus)


def _load(name: str, data_dir: Path, space: Space, say: Callable[[str], None]) -> Dataset:
    dataset = data.load(name, data_dir, say)
    if problems := space.grid.recipe.problems_with(len(dataset.train_labels)):
        raise RequestError(problem.under("recipe") for problem in problems)
    say(str(dataset))
    return dataset


def _refuse_other_protocols(run: RunFolder, found: set[int]) -> None:
    with contextlib.suppress(RequestError):  # one that cannot be read is written anew
        found = found | {grid.protocol for grid in [run.grid()] if grid}
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


def _refuse_other_recipes(space: Space, run: RunFolder, found: set[str]) -> None:
    mine = space.grid.recipe.to_json()
    for recipe in found - {mine}:
        raise RequestError.of(
            f"the run folder {run} holds trials of another recipe, {recipe}, where this space asks for {mine}; one "
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


def _refuse_unseen(run: RunFolder, names: Sequence[str]) -> None:
    if names:
        what = f"{run} is another folder, or none, on {', '.join(names)}"
        raise RequestError.of(f"{what}; give one that all machines share, or s3://BUCKET/RUN", "--out")


def _nothing_left(shown: Sequence[Planned], only: Mapping[str, str]) -> list[Problem]:
    if not shown:
        what = "every pair is hidden, and those run with --final only, for baselines and for submitted candidates"
        return [Problem("pairs", what)]
    strange = [
        Problem(f"--only {key}={value}", f"no trial has it; {did_you_mean(value, {FILTERS[key](p) for p in shown})}")
        for key, value in only.items()
        if not any(FILTERS[key](p) == value for p in shown)
    ]
    return strange or [Problem("--only", "no trial has all of these at once")]
