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


@pytest.fixture
def usual_handlers():
    """Those of a terminal: a script may have started the tests with signals ignored."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("usual_handlers")
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
