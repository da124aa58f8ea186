"""The command line of the package, `python -m results COMMAND RUN`: each command is a method of `results.run.Run`."""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from results import submissions
from results.run import load
from results.store.verify import Audit
from results.table import render, topup
from results.table.trials import METRICS
from results.trackers import KNOWN
from search_spaces import process
from search_spaces.errors import RequestError, seconds
from search_spaces.messages import shown_by


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0 if it is done, 1 if `verify` found something or `track` could not log all, 2 if the request is wrong, and every
    problem of it is said, 130 if interrupted.
    """
    arguments = vars(_parser().parse_args(argv))
    command, path = arguments.pop("command"), arguments.pop("run")
    try:
        with shown_by(functools.partial(print, file=sys.stderr)):
            answer = getattr(load(path), command)(**arguments)
            code = SHOWN.get(command, _show)(answer, **arguments) or 0
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
    """Return the commands: each is a method, its options are the arguments, and their defaults are the method's."""
    parser = argparse.ArgumentParser(prog="python -m results", description="Ask a run folder.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")

    def command(name: str, help: str) -> Callable[..., argparse.Action]:
        one = commands.add_parser(name, help=help, argument_default=argparse.SUPPRESS)
        one.add_argument("run", metavar="RUN", help="the --out of a sweep: a folder, or a URI such as s3://bucket/run")
        return one.add_argument

    add = command("leaderboard", "the baseline-vs-candidate table")
    _add_selection(add)
    which = "show differences to these, and not to the best of each column"
    add("--baseline", dest="baselines", nargs="+", metavar="POOL", help=which)
    add("--pools", nargs="+", metavar="POOL", help="only these rows")
    add("--sort", choices=render.SORTS, help="within baselines and candidates (default: gain)")
    add("--format", choices=render.FORMATS, default="text")
    add("--output", metavar="FILE", type=Path, help="write it there instead of to the terminal")

    add = command("report", "one page with the table, the curves and every trial, to read or to mail")
    _add_selection(add)
    add("--output", metavar="FILE", type=Path, help="the HTML; RUN/report.html unless given")

    add = command("curves", "the report's pictures as files")
    _add_selection(add)
    add("--output", metavar="DIR", type=Path, required=True, help="the folder that they are written into")
    add("--format", choices=("png", "svg"))

    add = command("reproduce", "what was measured beside what was published, with a verdict a cell")
    add("--against", metavar="FILE", type=Path, help="another paper's table, as CSV")
    add("--metric", choices=METRICS)
    add("--margin", metavar="POINTS", type=float, help="how near is agreement (default: 1)")
    add("--format", choices=render.FORMATS, default="text")

    add = command("topup", "say which seeds could still settle something, and how to add them")
    add("--target", metavar="POINTS", type=float, help="the difference to detect (default: 0.5)")
    add("--most", metavar="SEEDS", type=int, help="how many a cell may have (default: 20)")

    command("status", "how far the sweep is: what runs, what failed and why, how long still")

    add = command("watch", "the status, drawn again and again until all has ended, as the sweep itself shows it")
    _add_selection(add)
    add("--every", metavar="SECONDS", type=seconds)
    add("--table", action="store_true", help="with the table above it")

    add = command("track", "log every epoch with a tracker; what is logged already is not logged again")
    add("--to", choices=tuple(KNOWN), required=True)
    add("--follow", action="store_true", help="until all has ended")
    add("--every", metavar="SECONDS", type=seconds)

    command("compact", "merge the small files of ended trials; readers and a sweep may go on")

    add = command("verify", "audit the files: 0 if all is well, 1 if not, each finding with what to do")
    add("--set-aside", action="store_true", help="move what is found into RUN/set-aside; a rerun trains it again")

    add = command("submit", "name the revision of a candidate that --final trains on hidden pairs")
    add("pool", metavar="POOL[@REV]", help="a candidate's label, and the first digits of its short hash")

    add = command("cam", "draw what in its test images a trial's predictions come from")
    add("trial", metavar="TRIAL", help="the trial's id, or the beginning of it")
    add("--data-dir", metavar="DIR", type=Path, help="as for the sweep")
    add("--images", metavar="N", type=int, help="how many, from the first on")
    add("--wrong", action="store_true", help="only images that are misclassified")
    add("--trust", action="store_true", help="run the pool's code, where it came from a file: RUN has its text")
    add("--output", metavar="FILE", type=Path, help="the PNG; RUN/cam/TRIAL.png unless given")
    return parser


def _add_selection(add: Callable[..., argparse.Action]) -> None:
    """Add what selects a part of the run folder, the same for every command that shows a table."""
    add("--metric", choices=METRICS)
    add("--pairs", nargs="+", metavar="ARCH-DATASET", help="only these columns")
    add("--seeds", nargs="+", metavar="N", type=int, help="only these seeds")
    add("--latest", action="store_true", help="of a candidate's revisions only those of the newest sweep")
    add("--allow-mixed", action="store_true", help="let trials of different recipes share the table")


# What a command prints of its method's answer, and its exit code if that is not 0


def _show(answer: object, **_: Any) -> None:
    print(str(answer).removesuffix("\n"))


def _show_table(text: str, output: Path | None = None, **_: Any) -> None:
    if output is None:
        _show(text)


def _show_topup(columns: Sequence[topup.Column], **_: Any) -> None:
    for column in columns:
        print(column)
    if any(column.added for column in columns):
        print("where YOURS is the YAML file of the sweep; add its --data-dir")
    else:
        print("nothing that more seeds could settle, up to the number and for the difference asked for")


def _watch(looks: Iterable[object], **_: Any) -> None:
    with contextlib.suppress(KeyboardInterrupt):
        for _look in looks:
            if process.unread():
                return


def _show_audit(found: tuple[Audit, Sequence[str]], **_: Any) -> int:
    audit, moved = found
    for finding in audit.findings:
        print(finding)
    for place in moved:
        print(f"set aside: {place}")
    print(audit)
    return 1 if audit.findings else 0


SHOWN: Mapping[str, Callable[..., int | None]] = {
    "leaderboard": _show_table,
    "topup": _show_topup,
    "watch": _watch,
    "track": lambda is_all, **_: 0 if is_all else 1,
    "compact": lambda count: print(f"{count} trials merged"),
    "verify": _show_audit,
    "submit": lambda entry, **_: print(f"{submissions.spell(entry)} is the entry"),
}


if __name__ == "__main__":
    process.prepare()
    sys.exit(main())
