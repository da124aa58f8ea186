"""`python -m results COMMAND RUN`: the command line of the package."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from results import leaderboard, load
from trainer.problems import RequestError


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m results", description="Asks a run folder.")
    commands = parser.add_subparsers(dest="command", required=True)
    table = commands.add_parser("leaderboard", help="the baseline-vs-candidate table")
    table.add_argument("run", metavar="RUN", type=Path, help="the --out of a sweep")
    table.add_argument("--metric", choices=leaderboard.METRICS, default=leaderboard.METRICS[0])
    table.add_argument("--format", choices=("text", "markdown", "csv"), default="text")
    table.add_argument("--output", metavar="FILE", type=Path, help="write it there instead of to the terminal")
    table.add_argument("--allow-mixed", action="store_true", help="let trials of different recipes share the table")
    merge = commands.add_parser("compact", help="merge the small files of ended trials; readers and a sweep may go on")
    merge.add_argument("run", metavar="RUN", type=Path, help="the --out of a sweep")
    maps = commands.add_parser("cam", help="draw what in its test images a trial's predictions come from")
    maps.add_argument("run", metavar="RUN", type=Path, help="the --out of a sweep with `keep_weights: true`")
    maps.add_argument("trial", metavar="TRIAL", help="the trial's id, or the beginning of it; its pool's code is run")
    maps.add_argument("--data-dir", metavar="DIR", type=Path, default=Path("data"), help="as for the sweep")
    maps.add_argument("--images", metavar="N", type=int, default=16, help="how many, from the first on")
    maps.add_argument("--wrong", action="store_true", help="only images that are misclassified")
    maps.add_argument("--output", metavar="FILE", type=Path, help="the PNG; RUN/cam/TRIAL.png unless given")
    args = parser.parse_args(argv)
    try:
        if args.command == "compact":
            print(f"{load(args.run).folder.compact()} trials merged")
            return 0
        if args.command == "cam":
            from results import cam  # only here: it needs torch, which takes seconds

            folder = load(args.run).folder
            where = cam.draw(
                folder, args.trial, args.data_dir, args.images, wrong=args.wrong, output=args.output, say=print
            )
            print(where)
            return 0
        text = render(args.run, args.metric, args.format, args.allow_mixed)
    except RequestError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        return 2
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text, encoding="utf-8")
    else:
        print(text, end="")
    return 0


def render(run: Path, metric: str, form: str, allow_mixed: bool) -> str:
    frame = load(run).leaderboard(metric, allow_mixed)
    if form == "csv":
        return leaderboard.to_csv(frame)
    if form == "markdown":
        return leaderboard.to_markdown(frame, metric)
    return leaderboard.to_text(frame, metric)


if __name__ == "__main__":
    sys.exit(main())
