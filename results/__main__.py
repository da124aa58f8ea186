"""`python -m results COMMAND RUN`: the command line of the package."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from results import leaderboard, load, submissions
from trainer.problems import RequestError


def main(argv: Sequence[str] | None = None) -> int:
    """0: done; 2: the request is wrong, and every problem of it is said."""
    args = _parser().parse_args(argv)
    try:
        args.command(args)
    except RequestError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m results", description="Asks a run folder.")
    commands = parser.add_subparsers(required=True)

    def command(name: str, function: Callable[[argparse.Namespace], None], help: str) -> Callable[..., argparse.Action]:
        one = commands.add_parser(name, help=help)
        one.set_defaults(command=function)
        one.add_argument("run", metavar="RUN", type=Path, help="the --out of a sweep")
        return one.add_argument

    add = command("leaderboard", _leaderboard, "the baseline-vs-candidate table")
    add("--metric", choices=leaderboard.METRICS, default=leaderboard.METRICS[0])
    add("--format", choices=("text", "markdown", "csv"), default="text")
    add("--output", metavar="FILE", type=Path, help="write it there instead of to the terminal")
    add("--latest", action="store_true", help="of a candidate's revisions only those of the newest sweep")
    add("--allow-mixed", action="store_true", help="let trials of different recipes share the table")

    command("compact", _compact, "merge the small files of ended trials; readers and a sweep may go on")

    add = command("submit", _submit, "name the revision of a candidate that --final trains on hidden pairs")
    add("pool", metavar="POOL[@REV]", help="a candidate's label, and the first digits of its short hash")

    add = command("cam", _cam, "draw what in its test images a trial's predictions come from")
    add("trial", metavar="TRIAL", help="the trial's id, or the beginning of it; its pool's code is run")
    add("--data-dir", metavar="DIR", type=Path, default=Path("data"), help="as for the sweep")
    add("--images", metavar="N", type=int, default=16, help="how many, from the first on")
    add("--wrong", action="store_true", help="only images that are misclassified")
    add("--output", metavar="FILE", type=Path, help="the PNG; RUN/cam/TRIAL.png unless given")
    return parser


def _leaderboard(args: argparse.Namespace) -> None:
    run = load(args.run)
    frame = run.leaderboard(args.metric, args.allow_mixed, args.latest)
    if args.format == "csv":
        text = leaderboard.to_csv(frame)
    elif args.format == "markdown":
        text = leaderboard.to_markdown(frame, args.metric, run.notes())
    else:
        text = leaderboard.to_text(frame, args.metric, run.notes())
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


def _compact(args: argparse.Namespace) -> None:
    print(f"{load(args.run).folder.compact()} trials merged")


def _submit(args: argparse.Namespace) -> None:
    print(f"{submissions.spell(submissions.submit(load(args.run).folder, args.pool))} is the entry")


def _cam(args: argparse.Namespace) -> None:
    from results import cam  # only here: it needs torch, which takes seconds

    folder = load(args.run).folder
    print(cam.draw(folder, args.trial, args.data_dir, args.images, wrong=args.wrong, output=args.output, say=print))


if __name__ == "__main__":
    sys.exit(main())
