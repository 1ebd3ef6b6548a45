"""Two runs never write into one workdir."""

import re
import shutil
import signal
import subprocess
import sys

import pytest

from pgfl_jax.errors import UserError
from pgfl_jax.run_lock import check_held, check_unlocked, locked
from tests.runs import ROOT

HOLDER = """
import sys, time
from pathlib import Path
from pgfl_jax.run_lock import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.communicate()


def _enter(workdir):
    with locked(workdir):
        pass


@pytest.mark.parametrize("refuse", [_enter, check_unlocked])
def test_a_second_run_is_refused_until_the_first_is_gone(holder, tmp_path, refuse):
    with pytest.raises(UserError) as error:
        refuse(tmp_path)
    text = str(error.value)
    assert text.startswith(f"--workdir={tmp_path}: another run is training there (process ")
    assert f"(process {holder.pid} on " in text and "\n" not in text
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    refuse(tmp_path)


def test_looking_leaves_no_file(tmp_path):
    check_unlocked(tmp_path)
    assert not list(tmp_path.iterdir())


def test_one_run_after_the_other_may_use_it(tmp_path):
    for _ in range(2):
        _enter(tmp_path)


def _replace(folder):
    folder.rename(folder.with_name("old"))
    folder.mkdir()
    (folder / ".lock").touch()


@pytest.mark.parametrize("lose", [shutil.rmtree, lambda f: f.rename(f.with_name("old")), _replace])
def test_a_folder_that_is_lost_meanwhile_is_the_reason_of_what_fails(tmp_path, lose):
    folder = tmp_path / "run"
    message = re.escape(f"--workdir={folder}: deleted, moved or replaced during training")
    with pytest.raises(UserError, match=message), locked(folder):
        check_held(folder)
        lose(folder)
        with pytest.raises(UserError, match=message):
            check_held(folder)
        raise OSError("no such file")
    with pytest.raises(OSError, match="no such file"), locked(tmp_path):
        raise OSError("no such file")
