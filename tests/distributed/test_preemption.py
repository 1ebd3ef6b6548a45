"""Which signals ask a training to stop, and for how long."""

import os
import signal
import threading

import pytest

from pgfl_jax.distributed.preemption import SIGNALS, StopSignal


def _handlers():
    return [signal.getsignal(number) for number in SIGNALS]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_asks_to_stop_and_the_handlers_come_back(number, capfd):
    before = _handlers()
    with StopSignal() as stop:
        assert all(a != b for a, b in zip(_handlers(), before, strict=True))
        assert not stop.requested(1)
        os.kill(os.getpid(), number)
        assert stop.requested(2) and stop.requested(3)
    assert _handlers() == before
    said = "stopping after this step; press Ctrl-C again to stop at once\n"
    assert capfd.readouterr().out == (said if number == signal.SIGINT else "")
    if number == signal.SIGINT:
        with pytest.raises(KeyboardInterrupt):
            stop.interrupt()
    else:
        stop.interrupt()


@pytest.fixture(autouse=True)
def foreground():
    """Python's own handler, which a job in the background does not have."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_that_was_ignored_stays_ignored(capfd):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert not stop.requested(1)
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested(2)
    stop.interrupt()  # raises nothing
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    assert capfd.readouterr().out == ""


def test_a_second_interrupt_does_what_it_did_before():
    before = _handlers()
    with pytest.raises(KeyboardInterrupt), StopSignal() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # schedulers repeat themselves
        assert stop.requested(1)
        signal.raise_signal(signal.SIGINT)
    assert _handlers() == before


def test_another_thread_than_the_main_one_sets_no_handlers():
    before, seen = _handlers(), []

    def train():
        with StopSignal() as stop:
            seen.append((_handlers() == before, stop.requested(1)))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert seen == [(True, False)]
