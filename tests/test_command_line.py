"""What all command lines share: their errors, output, paths, flags and interrupts."""

import contextlib
import gc
import io
import os
import resource
import signal
import sys
import time
import weakref
from pathlib import Path

import jax
import pytest
from absl import flags
from absl.testing import flagsaver

import main  # noqa: F401  # defines --workdir
from configs import default
from input_pipeline.poses import __main__ as poses
from pgfl_jax import cli
from pgfl_jax.command_flags import define_config, load_config
from pgfl_jax.command_line import (
    guarded,
    keep_interrupts,
    parse_flags,
    with_stored_config,
    writable_folder,
)
from pgfl_jax.config import ConfigError, parse_config
from pgfl_jax.distributed.launch import joined
from pgfl_jax.errors import UserError
from tests.runs import GOLDEN_RUN, finish, launch


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


def latin_1():
    """A terminal's stdout."""
    return io.TextIOWrapper(io.BytesIO(), "latin-1", write_through=True)


def test_a_character_that_the_terminal_lacks_is_a_question_mark():
    with contextlib.redirect_stdout(latin_1()) as printed:
        assert guarded(lambda: print("14.0 (10.9–17.9) für 128 Leute …")) == 0
    assert printed.buffer.getvalue() == "14.0 (10.9?17.9) für 128 Leute ?\n".encode("latin-1")


@pytest.mark.parametrize("program", [cli, poses])
def test_the_help_is_printed_on_any_terminal(monkeypatch, program):
    monkeypatch.setattr(program.argparse.ArgumentParser, "format_help", lambda _: "0 … 255")
    with contextlib.redirect_stdout(latin_1()) as printed, pytest.raises(SystemExit, match=r"^0$"):
        program.main(["--help"])
    assert printed.buffer.getvalue() == b"0 ? 255"


def test_a_flag_file_that_is_missing_is_one_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main.py", "--flagfile=missing"])
    expected = (
        "error: --flagfile: [Errno 2] No such file or directory: 'missing' (--help lists the "
        "options)"
    )
    with pytest.raises(SystemExit) as ended:
        define_config(None)
    assert ended.value.code == expected
    with pytest.raises(SystemExit) as ended:  # programs without a configuration
        parse_flags(sys.argv)
    assert ended.value.code == expected


WANTED = "; a configuration is a Python file whose get_config() returns a ConfigDict "
WANTED += "(see configs/default.py)"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def get_config(): return {'seed': 1}", "get_config() returns dict"),
        ("def get_config(): pass", "get_config() returns NoneType"),
        ("seed = 1", "AttributeError: module 'config_file' has no attribute 'get_config'"),
        ("this is not Python", "NameError: name 'this' is not defined, line 1"),
        ("import absent_", "ModuleNotFoundError: No module named 'absent_', line 1"),
        ("def get_config():\n    raise ValueError('7')", "ValueError: 7, line 2"),
        ("\0", "SyntaxError: source code string cannot contain null bytes"),
    ],
)
def test_a_configuration_file_that_is_none_is_named(tmp_path, source, reason):
    path = tmp_path / "my.py"
    path.write_text(source)
    with pytest.raises(ConfigError) as error:
        load_config(str(path))
    assert str(error.value) == f"--config={path}: {reason}{WANTED}"


def test_a_missing_configuration_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=f"^--config={tmp_path}: there is no file {tmp_path}$"):
        load_config(str(tmp_path))


def test_a_configuration_file_gets_the_text_after_the_colon(tmp_path):
    path = tmp_path / "any_name"
    path.write_text(
        "from configs import synthetic_tiny\n"
        "def get_config(text):\n"
        "    config = synthetic_tiny.get_config()\n"
        "    config.data.data_dir = text\n"
        "    return config\n"
    )
    assert load_config(f"{path}:a:b").data.data_dir == "a:b"


@pytest.fixture
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    return str(tmp_path)


def test_a_tilde_is_the_home_in_every_option_with_a_path(home):
    values = default.get_config()
    values.update_from_flattened_dict(
        {
            "compilation_cache": "~/cache",
            "data.data_dir": "~",
            "data.manual_dir": "~/in",
            "data.pose.files": ("a~.npz", "~/poses.npz"),
            "model.pretrained": "~/w.pth",
        }
    )
    config = parse_config(values)
    assert config.compilation_cache == f"{home}/cache"
    assert (config.data.data_dir, config.data.manual_dir) == (home, f"{home}/in")
    assert config.data.pose.files == ("a~.npz", f"{home}/poses.npz")
    assert config.model.pretrained == f"{home}/w.pth"


def test_a_tilde_is_the_home_in_flags(home, monkeypatch):
    argv = ["main.py", "--config=configs/default.py", "--workdir=~/run"]
    monkeypatch.setattr(sys, "argv", argv)
    with flagsaver.flagsaver():
        parse_flags(argv)
        assert flags.FLAGS.workdir == f"{home}/run"
    stored, *_ = with_stored_config(["--mode=evaluate", "--workdir=~/run"], Path("stored.py"))
    assert stored == f"--config=stored.py:{home}/run"


@pytest.fixture
def workdir(tmp_path):
    with flagsaver.flagsaver(workdir=str(tmp_path)):
        yield tmp_path


def test_the_traceback_of_the_systems_error_is_kept_in_the_workdir(workdir, capsys):
    absent = workdir / "absent"
    assert guarded(absent.read_text) == 1
    assert capsys.readouterr().err == (
        f"error: [Errno 2] No such file or directory: '{absent}' (see {workdir}/error.log)\n"
    )
    log = (workdir / "error.log").read_text()
    assert log.startswith("Traceback") and "in read_text" in log and str(absent) in log


def test_our_own_errors_leave_no_traceback(workdir, capsys):
    def refuse():
        raise UserError("--workdir: no")

    assert guarded(refuse) == 1
    assert capsys.readouterr().err == "error: --workdir: no\n"
    assert cli.main(["info", "/absent"]) == 1
    assert capsys.readouterr().err.endswith("is /absent the folder of a training run?\n")
    assert list(workdir.iterdir()) == []


def test_a_traceback_that_finds_no_room_is_printed(workdir, capsys):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        assert guarded(lambda: os.read(-1, 1)) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    err = capsys.readouterr().err
    assert err.startswith("Traceback") and err.endswith("error: [Errno 9] Bad file descriptor\n")
    assert list(workdir.iterdir()) == []


def test_a_device_that_is_absent_is_one_line(tmp_path):
    command = "-m", "pgfl_jax.cli", "embed", "docs/images", "--run", GOLDEN_RUN
    started = launch(*command, "--out", tmp_path / "x.parquet", env={"JAX_PLATFORMS": "absent"})
    code, out, err = finish(started)
    assert (code, out) == (1, "") and err.count("\n") == 1, err
    assert err.startswith(
        "error: JAX_PLATFORMS=absent: JAX finds no such device here; unset the variable, or set "
        "it to cpu (Unable to initialize backend 'absent'"
    )


def test_a_run_without_its_device_is_one_line(monkeypatch):
    def devices():
        raise AssertionError  # all that JAX says where there is no NVIDIA GPU

    monkeypatch.setattr(jax, "devices", devices)
    expected = r"^JAX_PLATFORMS=cpu: JAX finds no such device here; .* or set it to cpu$"
    with pytest.raises(UserError, match=expected), joined(None, 1, None):
        pass
