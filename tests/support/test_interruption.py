"""Ctrl-C that Python drops inside a callback is raised again."""

import signal
import weakref

import pytest

from subcompress.support.interruption import Terminated, check_interrupted, interruptions


class Thing:
    pass


def lose(number):
    """Receive a signal where Python drops what its handler raises."""
    thing = Thing()
    reference = weakref.ref(thing, lambda _: signal.raise_signal(number))
    del thing
    assert reference() is None


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_lost_interruption_is_raised_again(number, expected):
    before = signal.getsignal(number)
    with interruptions():
        check_interrupted()
        lose(number)
        with pytest.raises(expected):
            check_interrupted()
    check_interrupted()
    assert signal.getsignal(number) is before


def test_an_ignored_signal_stays_ignored():
    """As in `command &` of a script."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptions():
            signal.raise_signal(signal.SIGINT)
            check_interrupted()
    finally:
        signal.signal(signal.SIGINT, before)
