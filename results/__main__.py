"""`python -m results COMMAND RUN`: the command line of the package."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from results import status, submissions
from results.run import load
from results.store import verify
from results.store.set_aside import set_aside
from results.table import published, render, reproduce, topup
from results.table.trials import METRICS
from search_spaces import process
from search_spaces.errors import RequestError, seconds


def main(argv: Sequence[str] | None = None) -> int:
    """0: done; 1: `verify` found something; 2: the request is wrong, and every problem of it is said."""
    args = _parser().parse_args(argv)
    try:
        code = args.command(args) or 0
        if error := process.unwritten():
            raise RequestError.of(f"cannot be written: {error.strerror}", "stdout")
        return code
    except RequestError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m results", description="Asks a run folder.")
    commands = parser.add_subparsers(required=True)

    def command(
        name: str, function: Callable[[argparse.Namespace], int | None], help: str
    ) -> Callable[..., argparse.Action]:
        one = commands.add_parser(name, help=help)
        one.set_defaults(command=function)
        one.add_argument("run", metavar="RUN", help="the --out of a sweep: a folder, or a URI such as s3://bucket/run")
        return one.add_argument

    add = command("leaderboard", _leaderboard, "the baseline-vs-candidate table")
    _add_choice(add)
    add("--baseline", nargs="+", metavar="POOL", help="show differences to these, and not to the best of each column")
    add("--pools", nargs="+", metavar="POOL", help="only these rows")
    add("--sort", choices=render.SORTS, default=render.SORTS[0], help="within baselines and candidates (default: gain)")
    add("--format", choices=render.FORMATS, default="text")
    add("--output", metavar="FILE", type=Path, help="write it there instead of to the terminal")

    add = command("report", _report, "one page with the table, the curves and every trial, to read or to mail")
    _add_choice(add)
    add("--output", metavar="FILE", type=Path, help="the HTML; RUN/report.html unless given")

    add = command("curves", _curves, "the report's pictures as files")
    _add_choice(add)
    add("--output", metavar="DIR", type=Path, required=True, help="the folder that they are written into")
    add("--format", choices=("png", "svg"), default="png")

    add = command("reproduce", _reproduce, "what was measured beside what was published, with a verdict a cell")
    add("--against", metavar="FILE", type=Path, default=published.PUBLISHED, help="another paper's table, as CSV")
    add("--metric", choices=METRICS, default=METRICS[0])
    add("--margin", metavar="POINTS", type=float, default=reproduce.MARGIN, help="how near is agreement (default: 1)")
    add("--format", choices=reproduce.FORMATS, default="text")

    add = command("topup", _topup, "write the spaces that add seeds where they could settle something")
    add(
        "--target",
        metavar="POINTS",
        type=float,
        default=topup.TARGET,
        help="what matters (default: 0.5)",
    )
    add("--most", metavar="SEEDS", type=int, default=topup.MOST, help="that a cell may have (default: 20)")

    command("status", _status, "how far the sweep is: what runs, what failed and why, how long still")

    add = command(
        "watch", _watch, "the status, drawn again and again until all has ended, as the sweep itself shows it"
    )
    _add_choice(add)
    add("--every", metavar="SECONDS", type=seconds, default=5.0)
    add("--table", action="store_true", help="with the table above it")

    command("compact", _compact, "merge the small files of ended trials; readers and a sweep may go on")

    add = command("verify", _verify, "audit the files: 0 if all is well, 1 if not, each finding with what to do")
    add("--set-aside", action="store_true", help="move what is found into RUN/set-aside; a rerun trains it again")

    add = command("submit", _submit, "name the revision of a candidate that --final trains on hidden pairs")
    add("pool", metavar="POOL[@REV]", help="a candidate's label, and the first digits of its short hash")

    add = command("cam", _cam, "draw what in its test images a trial's predictions come from")
    add("trial", metavar="TRIAL", help="the trial's id, or the beginning of it")
    add("--data-dir", metavar="DIR", type=Path, default=Path("data"), help="as for the sweep")
    add("--images", metavar="N", type=int, default=16, help="how many, from the first on")
    add("--wrong", action="store_true", help="only images that are misclassified")
    add("--trust", action="store_true", help="run the pool's code, where it came from a file: RUN has its text")
    add("--output", metavar="FILE", type=Path, help="the PNG; RUN/cam/TRIAL.png unless given")
    return parser


def _add_choice(add: Callable[..., argparse.Action]) -> None:
    """What of the run folder is in a table, the same for all that show one."""
    add("--metric", choices=METRICS, default=METRICS[0])
    add("--pairs", nargs="+", metavar="ARCH-DATASET", help="only these columns")
    add("--seeds", nargs="+", metavar="N", type=int, help="only these seeds")
    add("--latest", action="store_true", help="of a candidate's revisions only those of the newest sweep")
    add("--allow-mixed", action="store_true", help="let trials of different recipes share the table")


def _leaderboard(args: argparse.Namespace) -> None:
    run = load(args.run)
    frame = run.leaderboard(**_chosen(args), baselines=args.baseline, pools=args.pools)
    text = render.FORMATS[args.format](frame, args.metric, run.notes(), args.sort, bool(args.baseline))
    if not args.output:
        print(text, end="")
        return
    try:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RequestError.of(f"{args.output} cannot be written: {error.strerror or error}", "--output") from None


def _report(args: argparse.Namespace) -> None:
    from results.page import report  # only here, and below: matplotlib takes most of a second

    print(report.write(load(args.run), args.output, **_chosen(args)))


def _curves(args: argparse.Namespace) -> None:
    from results.page import figures

    print(figures.save(load(args.run), args.output, args.format, **_chosen(args)))


def _chosen(args: argparse.Namespace) -> dict[str, Any]:
    names = ("metric", "allow_mixed", "latest", "pairs", "seeds")
    return {name: getattr(args, name) for name in names}


def _reproduce(args: argparse.Namespace) -> None:
    table = published.load(args.against)
    cells = reproduce.compare(load(args.run).trials(), table, args.metric, args.margin)
    text = reproduce.FORMATS[args.format](cells, args.margin)
    if args.against == published.PUBLISHED and args.format != "csv":
        text += f"Published: {published.BENCHMARK}.\n"
    print(text, end="")


def _topup(args: argparse.Namespace) -> None:
    run = load(args.run)
    comparisons, paths = topup.write(run.folder, run.leaderboard(), args.target, args.most)
    for comparison in comparisons:
        print(comparison)
    for path in paths:
        print(
            f"python run_sweep.py --space {shlex.quote(str(path))} --out {shlex.quote(str(run.folder))} --data-dir DIR"
        )
    if paths:
        print("where DIR is the --data-dir of the sweep before; resources and the like are at their defaults there")
    if not paths:
        print("nothing that more seeds could settle, up to the number and for the difference asked for")


def _status(args: argparse.Namespace) -> None:
    print(status.status(load(args.run).folder))


def _watch(args: argparse.Namespace) -> None:
    run = load(args.run)

    def table() -> str:
        return render.to_text(run.leaderboard(**_chosen(args)), args.metric, run.notes()) + "\n"

    console = Console(markup=False, emoji=False)
    with (
        contextlib.suppress(KeyboardInterrupt),
        status.Screen(run.folder, console, table if args.table else str) as screen,
    ):
        while not screen.refresh().is_over and not process.unread():
            time.sleep(args.every)
    print(f"{table() if args.table else ''}{status.status(run.folder)}")


def _compact(args: argparse.Namespace) -> None:
    print(f"{load(args.run).folder.compact()} trials merged")


def _verify(args: argparse.Namespace) -> int:
    run = load(args.run).folder
    audit = verify.verify(run)
    for found in audit.findings:
        print(found)
    if args.set_aside:
        for moved in set_aside(run, [name for found in audit.findings for name in found.aside]):
            print(f"set aside: {moved}")
    print(audit)
    return 1 if audit.findings else 0


def _submit(args: argparse.Namespace) -> None:
    print(f"{submissions.spell(submissions.submit(load(args.run).folder, args.pool))} is the entry")


def _cam(args: argparse.Namespace) -> None:
    from results.page import cam  # only here: it needs torch, which takes seconds

    folder = load(args.run).folder
    how = {"wrong": args.wrong, "trust": args.trust, "output": args.output}
    print(cam.draw(folder, args.trial, args.data_dir, args.images, **how, say=print))


if __name__ == "__main__":
    process.prepare()
    sys.exit(main())
