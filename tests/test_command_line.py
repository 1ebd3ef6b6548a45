"""Interrupts that are heard, and folders that are tried before the work is done."""

import gc
import signal
import time

import pytest

from pgfl_jax.command_line import interrupt, writable_folder
from pgfl_jax.errors import UserError


@pytest.fixture
def handlers():
    """The handlers of a command line."""
    before = [signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGALRM)]
    yield
    for number, handler in zip((signal.SIGINT, signal.SIGALRM), before, strict=True):
        signal.signal(number, handler)


def test_an_interrupt_is_raised_at_once(handlers):
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_an_interrupt_during_garbage_collection_is_not_lost(handlers):
    sent = []

    def _xla_gc_callback(*_):  # as JAX names its own
        if not sent:
            sent.append(True)
            signal.raise_signal(signal.SIGINT)

    gc.callbacks.append(_xla_gc_callback)
    try:
        gc.collect()
        assert sent  # the interrupt came, and nothing has been raised yet
        with pytest.raises(KeyboardInterrupt):
            time.sleep(5)
    finally:
        gc.callbacks.remove(_xla_gc_callback)


def test_a_folder_that_cannot_be_made_is_named_with_its_option(tmp_path):
    assert writable_folder(tmp_path / "a" / "b", "--workdir").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--workdir: the folder .*/file/run cannot be written to"):
        writable_folder(tmp_path / "file" / "run", "--workdir")
