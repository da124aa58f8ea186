"""The command line of a sweep: `python run_sweep.py --space pools.yaml`."""

from __future__ import annotations

import argparse
import functools
import re
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

import results
import search_spaces.space
from orchestrator import environment
from orchestrator.plan import Plan, make_plan
from orchestrator.record import StoppedError
from orchestrator.shutdown import GRACE_S, interruptible
from orchestrator.sweep import Sweep
from results.store import schema, verify
from results.store.folder import RunFolder
from results.store.lease import Lease
from results.store.s3 import is_uri
from results.store.set_aside import SET_ASIDE, set_aside
from search_spaces import process
from search_spaces.errors import RequestError, did_you_mean, gather, seconds
from search_spaces.grid import FILTERS, Grid
from search_spaces.messages import log, shown_by
from search_spaces.pool import own_slug
from trainer import data
from trainer.gate import Gate

OK, INCOMPLETE, REFUSED, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sweep. 0: every trial completed; 1: some did not; 2: refused; 130: interrupted, by any of its signals."""
    args = _parser().parse_args(argv)
    console = Console(file=sys.stdout, markup=False, emoji=False)  # this stdout: while Ray runs, sys.stdout is its log
    again = functools.partial(_again, sys.argv[1:] if argv is None else argv, args.out)
    try:
        with interruptible(), shown_by(functools.partial(console.print, highlight=False, soft_wrap=True)):
            code = _run(args, console)
        if (args.plan or args.check or args.status) and (error := process.unwritten()):
            raise RequestError.of(f"cannot be written: {error.strerror}", "stdout")
        return code
    except RequestError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        print("nothing was started", file=sys.stderr)
        return REFUSED
    except StoppedError as error:
        print(f"error: stopped: {error}", file=sys.stderr)
        kept = "what has finished is kept; trials go on from their last checkpoints"
        print(f"{kept}. To go on: {again()}", file=sys.stderr)
        return INCOMPLETE
    except KeyboardInterrupt as why:
        print(f"\n{why or 'interrupted'}; what has finished is kept. To go on: {again()}", file=sys.stderr)
        return INTERRUPTED


def _again(argv: Sequence[str], out: str | None) -> str:
    """The same command, without what is secret in it: a store's URI may have a login."""
    shown = [argument.replace(out, str(RunFolder(out))) if out and is_uri(out) else argument for argument in argv]
    return shlex.join(["python", "run_sweep.py", *shown])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run_sweep.py", description="Trains a grid of pooling layers and prints the baseline-vs-candidate table."
    )
    add = parser.add_argument
    add("--space", metavar="FILE", required=True, help="a YAML file, also looked for in search_spaces/")
    add("--out", metavar="RUN", help="the run folder, or s3://BUCKET/RUN (default: runs/NAME, by the space's name)")
    add("--data-dir", metavar="DIR", type=Path, help="where the images are, or go (default: data)")
    where = "where trials run: this machine (default), this process without Ray, or a Ray cluster"
    add("--address", metavar="local|inline|auto|HOST:PORT", default="local", help=where)
    add("--set", metavar="KEY=VALUE", action="append", default=[], help="a recipe field, or a path of keys of the file")
    add("--only", metavar="KEY=VALUE,...", default="", help=f"a part of the grid, by {', '.join(FILTERS)}")
    add("--final", action="store_true", help="train baselines and submitted candidates on the hidden pairs too")
    add("--retry-failed", action="store_true", help="train failed trials again")
    then = f"then write checkpoints and stop, within {GRACE_S:.0f} s; the same command goes on"
    add("--time-budget", metavar="SECONDS", type=seconds, default=float("inf"), help=then)
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--plan", action="store_true", help="list the trials and what is done; run no pool's code")
    instead.add_argument("--check", action="store_true", help="run every pool on a few samples, in its own process")
    instead.add_argument("--status", action="store_true", help="count what has ended; start nothing")
    return parser


def _run(args: argparse.Namespace, console: Console) -> int:
    stop_at = time.monotonic() + args.time_budget
    space, only, data_dir, _ = gather(
        ("", lambda: search_spaces.space.load(args.space, args.set)),
        ("", lambda: _only(args.only)),
        ("", lambda: data.folder(args.data_dir)),
        ("", lambda: None if args.plan or args.status else environment.check_folders()),
    )
    run = RunFolder(args.out or Path("runs") / own_slug(space.grid.name))
    if args.final:  # an entry is trained as it was submitted, whatever its file says by now
        entries = (pool for pool, _ in run.submissions.read().values())
        space = space.model_copy(update={"grid": space.grid.with_candidates(entries)})
    planned = functools.partial(make_plan, space, run, final=args.final, only=only)
    try:
        plan = planned(retry_failed=args.retry_failed)
    except RequestError:
        if args.plan or args.check or args.status or not _set_aside_unreadable(run):
            raise
        plan = planned(retry_failed=args.retry_failed)
    if args.check:
        return _check(args.space, space.grid, plan)
    log.info(_summary(space.grid.name, run, plan, args.final))
    if args.plan:
        _show_plan(run, plan)
        return OK
    if args.status:
        return _exit_code(plan)
    if plan.todo:
        Sweep(space, run, plan, data_dir, args.address, console, stop_at).start()
        plan = planned()
    else:
        with Lease(run):
            run.tidy()
            run.write_grid(space.grid)  # roles and labels may be new
        log.info("nothing to do: every trial has ended")
    _show_table(run, plan)
    return _exit_code(plan)


def _set_aside_unreadable(run: RunFolder) -> bool:
    """Move trials that cannot be read out of the way: a sweep that is started again at night must not end there."""
    found = [one for one in verify.unreadable(run) if one.aside]
    if found:
        with Lease(run):
            set_aside(run, [name for one in found for name in one.aside])
    for one in found:
        log.info(f"set aside, into {run}/{SET_ASIDE}: {one}")
    return bool(found)


def _check(name: str, grid: Grid, plan: Plan) -> int:
    with Gate.over(grid) as gate:
        report = gate.report
    print(report.table())
    for same in report.equivalences():
        log.info(f"same function: {same}")
    for note in [*report.notes, *report.missing]:
        log.info(f"note: {note}")
    for problem in report.refused:
        log.info(f"refused: {problem}")
    if report.refused:
        return REFUSED
    log.info(f"{name}: {len(plan.planned)} trials, every pool may be trained")
    return OK


def _show_plan(run: RunFolder, plan: Plan) -> None:
    from orchestrator.forecast import forecast  # scipy, 37 MiB, which no sweep needs while it runs

    for each in plan.planned:
        ended = plan.ended.get(each.trial.id)
        print(f"{ended.status if ended else 'to do':<10}{each.trial.id}  {each.trial.pool.label}")
    for line in forecast(plan, run):
        print(line)
    for same in run.equivalences.read():
        print(f"same function, as the last sweep found: {same}")
    print("whether its pools may be trained, and what they cost: --check, which runs their code")


def _show_table(run: RunFolder, plan: Plan) -> None:
    table = results.load(run.where).leaderboard(format="text")
    print(f"\n{table}")
    if failed := plan.counts()[schema.FAILED]:
        print(f"{failed} failed; why stands in {run}/logs; train them again with --retry-failed")
    print(f"{run}: ask again with  python -m results leaderboard {shlex.quote(str(run))}")


def _exit_code(plan: Plan) -> int:
    counts = plan.counts()
    return OK if counts[schema.COMPLETED] == counts.total() else INCOMPLETE


def _summary(name: str, run: RunFolder, plan: Plan, final: bool) -> str:
    counts = plan.counts()
    ended = [f"{counts[status]} {status}" for status in schema.STATUSES if counts[status]]
    done = f", of which {', '.join(ended)}" if ended else ""
    waits = "are of candidates that are not submitted: python -m results submit" if final else "wait for --final"
    withheld = f"; {plan.withheld} more on hidden pairs {waits}" if plan.withheld else ""
    return f"{name}: {len(plan.planned)} trials{done}, {len(plan.todo)} to run, into {run}{withheld}"


def _only(text: str) -> dict[str, list[str]]:
    """`arch=resnet56,pool=gem(p=1, eps=0.1),pool=gap`: the values of each key; commas within brackets part nothing."""
    found: dict[str, list[str]] = {}
    for part in filter(None, re.split(r",(?![^(]*\))", text)):
        key, equals, value = map(str.strip, part.partition("="))
        if not equals or key not in FILTERS:
            raise RequestError.of(f"expected KEY=VALUE,..., got {text!r}; {did_you_mean(key, FILTERS)}", "--only")
        found.setdefault(key, []).append(value)
    return found
