"""Interrupts that are heard, and folders that are tried before the work is done."""

import gc
import signal
import sys
import time
import weakref

import pytest

from pgfl_jax.command_line import hear_interrupts, writable_folder
from pgfl_jax.errors import UserError


@pytest.fixture(autouse=True)
def command_line(monkeypatch):
    """The process of a command line, for a while."""
    numbers = signal.SIGINT, signal.SIGALRM
    before = [signal.getsignal(number) for number in numbers]
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # to be restored
    hear_interrupts()
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def test_an_interrupt_is_raised_at_once():
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_an_interrupt_during_garbage_collection_is_not_lost():
    sent = []

    def callback(*_):  # as JAX has one
        if not sent:
            sent.append(True)
            signal.raise_signal(signal.SIGINT)

    gc.callbacks.append(callback)
    try:
        with pytest.raises(KeyboardInterrupt):
            gc.collect()  # long enough for the second one, or else:
            assert sent
            time.sleep(5)
    finally:
        gc.callbacks.remove(callback)


def test_an_interrupt_in_a_weak_reference_is_not_lost():
    class Referred:
        pass

    referred, dropped = Referred(), []

    def callback(_):
        dropped.append(True)
        signal.raise_signal(signal.SIGINT)

    reference = weakref.ref(referred, callback)
    del referred  # raises nothing yet
    assert dropped and reference() is None
    with pytest.raises(KeyboardInterrupt):
        time.sleep(5)


def test_a_folder_that_cannot_be_made_is_named_with_its_option(tmp_path):
    assert writable_folder(tmp_path / "a" / "b", "--workdir").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--workdir: the folder .*/file/run cannot be written to"):
        writable_folder(tmp_path / "file" / "run", "--workdir")
