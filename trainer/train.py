"""The fixed trainer: a trial, one result an epoch, from its first epoch or from where its checkpoint left it."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Generator, Iterator

from trainer import checkpoint
from trainer.checkpoint import Slot
from trainer.device.program import Program
from trainer.epoch import Epoch

CHECKPOINT_EVERY_S = 60.0  # what a machine that is taken away costs at most, beside the epoch it is in


def train(
    program: Program, *, slot: Slot | None = None, checkpoint_every: int = 10, say: Callable[[str], None] = print
) -> Iterator[Epoch]:
    """Trains a trial and yields every epoch from the first to the last, or to the one that diverged.

    With a `slot` it goes on from the checkpoint in there: the epochs behind it are yielded again at once, so a
    resumed trial looks to the caller like one that never stopped, and its numbers are bit-equal to it (CPU). A
    checkpoint is written every `checkpoint_every` epochs, after any epoch that ends `CHECKPOINT_EVERY_S` or more after
    the last one, and when the generator is closed early. One that cannot be used is said so and passed over.

    Raises:
        whatever the pool raises.
    """
    with contextlib.closing(turns(program, slot=slot, checkpoint_every=checkpoint_every, say=say)) as trial:
        for epoch in trial:
            if epoch is not None:
                yield epoch


def turns(
    program: Program, *, slot: Slot | None = None, checkpoint_every: int = 10, say: Callable[[str], None] = print
) -> Generator[Epoch | None, None, None]:
    """`train` for trials that share a process: yields None wherever others may take a turn."""
    epochs = program.trial.recipe.epochs
    history = _restore(program, slot, say) if slot else []
    yield from history
    saved = time.monotonic()
    for number in range(len(history) + 1, epochs + 1):
        if history and history[-1].diverged:
            return
        history.append((yield from program.run(number)))
        due = number % checkpoint_every == 0 or time.monotonic() - saved >= CHECKPOINT_EVERY_S
        if slot and due and number < epochs:
            _save(program, slot, history)
            saved = time.monotonic()
        try:
            yield history[-1]
        except GeneratorExit:  # stopped between two epochs, where the state is whole
            if slot:
                _save(program, slot, history)
            raise


def _restore(program: Program, slot: Slot, say: Callable[[str], None]) -> list[Epoch]:
    """Puts the program where the checkpoint left it; the epochs behind it, none if there is no usable one."""
    data = slot.read()
    if data is None:
        return []
    try:
        state = checkpoint.decode(program.trial.id, data)
        history = [Epoch(**epoch) for epoch in state.pop("history")]
        program.load_state(state)
    except (checkpoint.CheckpointError, KeyError, TypeError) as error:
        say(f"checkpoint passed over, the trial starts from its first epoch: {error}")
        return []
    say(f"resumed after epoch {len(history)}")
    return history


def _save(program: Program, slot: Slot, history: list[Epoch]) -> None:
    state = {**program.state(), "history": [dataclasses.asdict(epoch) for epoch in history]}
    slot.write(checkpoint.encode(program.trial.id, state))
