"""Ending early: who is asked, how long it may take, and whose handlers are there afterwards."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from orchestrator import shutdown
from orchestrator.shutdown import Shutdown, interruptible


@pytest.fixture(autouse=True)
def _as_at_a_terminal() -> Iterator[None]:
    """Whoever runs the tests may have some of the signals ignored."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in shutdown.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", shutdown.SIGNALS)
def test_the_first_signal_asks_once_and_the_second_does_not_wait(number: int) -> None:
    asked: list[bool] = []
    with Shutdown(lambda: asked.append(True)) as ending:
        ending.check(running=2)
        assert not asked
        os.kill(os.getpid(), number)
        ending.check(running=2)
        ending.check(running=1)
        assert asked == [True]
        with pytest.raises(KeyboardInterrupt, match=f"interrupted by {signal.Signals(number).name}"):
            os.kill(os.getpid(), number)
        with pytest.raises(KeyboardInterrupt):  # the one above may have been raised where nobody could hear it
            ending.check(running=1)


@pytest.mark.parametrize(("running", "grace_s"), [(0, 20.0), (1, 0.0)], ids=["all have left", "the grace is over"])
def test_nobody_is_waited_for_in_vain(running: int, grace_s: float) -> None:
    with Shutdown(lambda: None, grace_s=grace_s) as ending:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            ending.check(running)


def test_it_serves_one_round_after_another() -> None:
    """Packs that are split and machines that are lost make another round of the same sweep."""
    asked: list[bool] = []
    ending = Shutdown(lambda: asked.append(True))
    for _ in range(2):
        with ending:
            ending.check(running=1)
    with ending:
        os.kill(os.getpid(), signal.SIGTERM)
        ending.check(running=1)
    assert asked == [True]


def test_a_time_that_is_up_is_as_good_as_a_signal() -> None:
    asked: list[bool] = []
    with Shutdown(lambda: asked.append(True), stop_at=time.monotonic()) as ending:
        ending.check(running=1)
        assert asked == [True]
        assert ending.asked
        with pytest.raises(KeyboardInterrupt, match="the time budget is used up"):
            ending.check(running=0)


def test_handlers_are_taken_back_and_given_back() -> None:
    def theirs(*_: object) -> None:
        raise AssertionError

    before = [signal.getsignal(number) for number in shutdown.SIGNALS]
    with Shutdown(lambda: None) as ending:
        signal.signal(signal.SIGUSR1, theirs)  # as Tune does
        ending.insist()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert ending.asked
    assert [signal.getsignal(number) for number in shutdown.SIGNALS] == before


def test_what_is_ignored_stays_ignored() -> None:
    """nohup."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interruptible(), Shutdown(lambda: None) as ending:
        os.kill(os.getpid(), signal.SIGINT)
        assert not ending.asked
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.parametrize("number", shutdown.SIGNALS)
def test_before_ray_runs_a_signal_ends_it_at_once(number: int) -> None:
    with pytest.raises(KeyboardInterrupt, match=signal.Signals(number).name), interruptible():
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) is signal.default_int_handler
