"""The command line of the package, `python -m results COMMAND RUN`: each command is a method of `results.run.Run`."""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from results import submissions
from results.run import Run, load
from results.table import published, render, reproduce, topup
from results.table.trials import METRICS
from results.trackers import KNOWN
from search_spaces import process
from search_spaces.errors import RequestError, seconds
from search_spaces.messages import shown_by

Command = Callable[..., int | None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0 if it is done, 1 if `verify` found something or `track` could not log all, 2 if the request is wrong, and every
    problem of it is said, 130 if interrupted.
    """
    arguments = vars(_parser().parse_args(argv))
    command, path = arguments.pop("command"), arguments.pop("run")
    try:
        code = command(load(path), **arguments) or 0
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
    """Return the commands: the name of each is that of its method, and the names of its options are its arguments."""
    parser = argparse.ArgumentParser(prog="python -m results", description="Ask a run folder.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Command, help: str) -> Callable[..., argparse.Action]:
        one = commands.add_parser(name, help=help)
        one.set_defaults(command=function)
        one.add_argument("run", metavar="RUN", help="the --out of a sweep: a folder, or a URI such as s3://bucket/run")
        return one.add_argument

    add = command("leaderboard", _leaderboard, "the baseline-vs-candidate table")
    _add_selection(add)
    which = "show differences to these, and not to the best of each column"
    add("--baseline", dest="baselines", nargs="+", metavar="POOL", help=which)
    add("--pools", nargs="+", metavar="POOL", help="only these rows")
    add("--sort", choices=render.SORTS, default=render.SORTS[0], help="within baselines and candidates (default: gain)")
    add("--format", choices=render.FORMATS, default="text")
    add("--output", metavar="FILE", type=Path, help="write it there instead of to the terminal")

    add = command("report", _report, "one page with the table, the curves and every trial, to read or to mail")
    _add_selection(add)
    add("--output", metavar="FILE", type=Path, help="the HTML; RUN/report.html unless given")

    add = command("curves", _curves, "the report's pictures as files")
    _add_selection(add)
    add("--output", metavar="DIR", type=Path, required=True, help="the folder that they are written into")
    add("--format", choices=("png", "svg"), default="png")

    add = command("reproduce", _reproduce, "what was measured beside what was published, with a verdict a cell")
    add("--against", metavar="FILE", type=Path, default=published.PUBLISHED, help="another paper's table, as CSV")
    add("--metric", choices=METRICS, default=METRICS[0])
    add("--margin", metavar="POINTS", type=float, default=reproduce.MARGIN, help="how near is agreement (default: 1)")
    add("--format", choices=reproduce.FORMATS, default="text")

    add = command("topup", _topup, "say which seeds could still settle something, and how to add them")
    difference = "the difference to detect (default: 0.5)"
    add("--target", metavar="POINTS", type=float, default=topup.TARGET, help=difference)
    add("--most", metavar="SEEDS", type=int, default=topup.MOST, help="how many a cell may have (default: 20)")

    command("status", _status, "how far the sweep is: what runs, what failed and why, how long still")

    add = command(
        "watch", _watch, "the status, drawn again and again until all has ended, as the sweep itself shows it"
    )
    _add_selection(add)
    add("--every", metavar="SECONDS", type=seconds, default=5.0)
    add("--table", action="store_true", help="with the table above it")

    add = command("track", _track, "log every epoch with a tracker; what is logged already is not logged again")
    add("--to", choices=tuple(KNOWN), required=True)
    add("--follow", action="store_true", help="until all has ended")
    add("--every", metavar="SECONDS", type=seconds, default=5.0)

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


def _add_selection(add: Callable[..., argparse.Action]) -> None:
    """Add what selects a part of the run folder, the same for every command that shows a table."""
    add("--metric", choices=METRICS, default=METRICS[0])
    add("--pairs", nargs="+", metavar="ARCH-DATASET", help="only these columns")
    add("--seeds", nargs="+", metavar="N", type=int, help="only these seeds")
    add("--latest", action="store_true", help="of a candidate's revisions only those of the newest sweep")
    add("--allow-mixed", action="store_true", help="let trials of different recipes share the table")


def _leaderboard(run: Run, output: Path | None, **arguments: Any) -> None:
    text = run.leaderboard(output=output, **arguments)
    if not output:
        print(text, end="")


def _report(run: Run, **arguments: Any) -> None:
    print(run.report(**arguments))


def _curves(run: Run, **arguments: Any) -> None:
    print(run.curves(**arguments))


def _reproduce(run: Run, **arguments: Any) -> None:
    print(run.reproduce(**arguments), end="")


def _topup(run: Run, **arguments: Any) -> None:
    columns = run.topup(**arguments)
    for column in columns:
        print(column)
    if any(column.added for column in columns):
        print("where YOURS is the YAML file of the sweep; add its --data-dir")
    else:
        print("nothing that more seeds could settle, up to the number and for the difference asked for")


def _status(run: Run) -> None:
    print(run.status())


def _watch(run: Run, **arguments: Any) -> None:
    with contextlib.suppress(KeyboardInterrupt):
        for _ in run.watch(**arguments):
            if process.unread():
                return


def _track(run: Run, **arguments: Any) -> int:
    with shown_by(functools.partial(print, file=sys.stderr)):
        return 0 if run.track(**arguments) else 1


def _compact(run: Run) -> None:
    print(f"{run.compact()} trials merged")


def _verify(run: Run, set_aside: bool) -> int:
    audit, moved = run.verify(set_aside)
    for found in audit.findings:
        print(found)
    for place in moved:
        print(f"set aside: {place}")
    print(audit)
    return 1 if audit.findings else 0


def _submit(run: Run, pool: str) -> None:
    print(f"{submissions.spell(run.submit(pool))} is the entry")


def _cam(run: Run, **arguments: Any) -> None:
    with shown_by(print):
        print(run.cam(**arguments))


if __name__ == "__main__":
    process.prepare()
    sys.exit(main())
