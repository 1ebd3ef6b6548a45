"""Interrupts that are not lost, and folders that are tried before the work is done."""

import gc
import signal
import sys
import time
import weakref
from pathlib import Path

import pytest

from pgfl_jax.command_line import keep_interrupts, writable_folder
from pgfl_jax.errors import UserError


@pytest.fixture
def command_line(monkeypatch):
    """A process whose interrupts are kept."""
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # restored afterwards
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGALRM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    keep_interrupts()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_an_interrupt_during_garbage_collection_is_not_lost(command_line):
    sent = []

    def callback(*_):  # JAX has one, too
        if not sent:
            sent.append(True)
            signal.raise_signal(signal.SIGINT)

    gc.callbacks.append(callback)
    try:
        with pytest.raises(KeyboardInterrupt):
            gc.collect()  # may take long enough for the second interrupt to be raised in it
            assert sent
            time.sleep(5)
    finally:
        gc.callbacks.remove(callback)


def test_an_interrupt_in_a_weak_reference_is_not_lost(command_line):
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


@pytest.mark.parametrize("url", ["gs://bucket/run", "s3://bucket", "file:///tmp/run"])
def test_a_url_is_refused(tmp_path, monkeypatch, url):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^--workdir: (gs|s3|file)://\w+.* is a URL; only folders"):
        writable_folder(Path(url), "--workdir")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a:b", "gs:", "c/d:/e"])
def test_a_colon_makes_no_url(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert writable_folder(Path(name), "--workdir").is_dir()
