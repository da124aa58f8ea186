"""`python -m trainer`: one trial, without Ray and without a run folder, in the benchmark's log format."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from search_spaces import architectures, datasets, machine, messages, pool, process
from search_spaces.document import read_override
from search_spaces.errors import RequestError, expected, gather
from search_spaces.pool import Pool
from search_spaces.recipe import Recipe
from search_spaces.trial import Trial
from trainer import data, log
from trainer.augment import Images
from trainer.device.execution import default_device
from trainer.gate import Gate
from trainer.train import Program, train

UNREAD = 141  # what a shell says of a command that ended because nobody reads it any more: 128 + SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m trainer", description="Trains one trial.")
    parser.add_argument("--arch", required=True, help=", ".join(architectures.ARCHS))
    parser.add_argument("--dataset", required=True, help=", ".join(datasets.DATASETS))
    parser.add_argument("--pool", required=True, help="gem, 'gem(p=1)', mine.py or mine.py:Class")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="a field of the recipe")
    parser.add_argument("--data-dir", metavar="DIR", type=Path, help="where the images are, or go (default: data)")
    cores = machine.cores()
    parser.add_argument("--threads", type=int, default=cores, help="on a CPU: the order of sums, and the last digits")
    parser.add_argument("--check", action="store_true", help="check the pool and what it costs; train nothing")
    args = parser.parse_args(argv)
    try:
        with messages.shown_by(functools.partial(print, flush=True)):
            return _run(args)
    except RequestError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _run(args: argparse.Namespace) -> int:
    trial, data_dir = gather(
        ("", lambda: request(args.arch, args.dataset, args.pool, args.seed, args.set, args.threads)),
        ("", lambda: data.folder(args.data_dir)),
    )
    with Gate([trial.pool], [trial.arch], trial.recipe) as gate:
        report = gate.report
    say = messages.log.info
    if args.check:
        say(report.table())
    for note in (*(report.missing if args.check else ()), *report.notes):
        say(f"note: {note}")
    report.refuse()
    if args.check:
        return 0
    torch.set_num_threads(args.threads)
    device = default_device()
    dataset = data.load(trial.dataset, data_dir)
    on_cpu = f" ({args.threads} thread{'s' * (args.threads > 1)})" if device.type == "cpu" else ""
    say(f"{trial.id} on {device}{on_cpu}")
    say(str(dataset))
    program = Program(trial, Images(dataset, device))
    history = []
    for epoch in train(program):
        history.append(epoch)
        if process.unread():  # what is printed is all that this leaves
            return UNREAD
        if log.is_logged(epoch, trial.recipe.epochs):
            say(log.epoch_line(epoch))
    collapsed = program.collapsed(history)
    for line in log.final_lines(trial, history, collapsed):
        say(line)
    return 1 if collapsed or history[-1].diverged else 0


def request(
    arch_name: str, dataset: str, pool_spec: str, seed: int, overrides: Sequence[str], threads: int = 1
) -> Trial:
    """Return the trial that the command line asks for.

    Raises:
        RequestError: with every problem of it.
    """
    _, _, one_pool, recipe, _, _ = gather(
        ("--arch", lambda: architectures.get(arch_name)),
        ("--dataset", lambda: datasets.get(dataset)),
        ("--pool", lambda: _one_pool(pool_spec)),
        ("--set", lambda: _recipe(overrides)),
        ("--seed", lambda: _at_least(0, seed)),
        ("--threads", lambda: _at_least(1, threads)),
    )
    return Trial(one_pool, arch_name, dataset, seed, recipe)


def _one_pool(spec: str) -> Pool:
    found = pool.expand(spec)
    if found.count > 1:
        raise RequestError.of(f"{spec} is a grid of {found.count} pools; name one")
    return found[0]


def _recipe(overrides: Sequence[str]) -> Recipe:
    pairs = gather(*(("", functools.partial(read_override, override)) for override in overrides))
    return Recipe.of(dict(pairs))


def _at_least(least: int, number: int) -> int:
    if number < least:
        raise RequestError.of(expected(f"an integer >= {least}", number))
    return number


if __name__ == "__main__":
    process.prepare()
    sys.exit(main())
