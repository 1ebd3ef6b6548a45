"""Signals: SIGKILL at any moment, SIGTERM, Ctrl-C."""

import re
import signal
import time

import numpy as np
import pytest

from tests.runs import assert_same_end, finish, steps

pytestmark = pytest.mark.faults

SAVED_OFTEN = (
    "--config.train.epochs=12.0", "--config.train.checkpoint_every=2",
    "--config.train.log_every=5", "--config.train.eval_every=24",
)  # fmt: skip


def _half_saved(workdir):
    """The checkpoints without a final name yet, by name and inode."""
    folders = (workdir / "checkpoints").glob("*orbax-checkpoint-tmp*")
    found = set()
    for folder in folders:
        try:
            found.add((folder.name, folder.stat().st_ino))
        except FileNotFoundError:
            continue  # it has just been given its final name
    return found


def _await_line(process, pattern):
    for line in process.stdout:
        if re.match(pattern, line):
            return
    raise AssertionError(process.stderr.read())


def _kill(process, workdir, moment, rng):
    """Kill at a random moment; returns whether a checkpoint was half written."""
    before = _half_saved(workdir)
    if moment == "starting":
        time.sleep(rng.uniform(0, 4))
    else:
        for _ in range(rng.integers(2, 8)):
            _await_line(process, "step ")
        if moment == "stepping":
            time.sleep(rng.uniform(0, 0.3))
        else:
            while process.poll() is None and not _half_saved(workdir) - before:
                pass
            time.sleep(rng.uniform(0, 0.1))
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL
    return bool(_half_saved(workdir) - before)


@pytest.mark.parametrize(
    ("saving", "stepping", "starting"),
    [(2, 1, 0), pytest.param(11, 6, 3, marks=pytest.mark.slow)],
    ids=["three", "twenty"],
)
def test_kills_change_nothing(drive, tmp_path, saving, stepping, starting):
    code, _, err = finish(drive(tmp_path / "straight", *SAVED_OFTEN))
    assert code == 0, err
    rng = np.random.default_rng(0)
    moments = ["saving"] * saving + ["stepping"] * stepping + ["starting"] * starting
    workdir = tmp_path / "killed"
    in_a_save, reached = 0, []
    for moment in rng.permutation(moments):
        in_a_save += _kill(drive(workdir, *SAVED_OFTEN), workdir, moment, rng)
        reached += steps(workdir)[-1:] if (workdir / "checkpoints").exists() else []
    assert in_a_save >= saving // 2
    # The newest step never went back, and often advanced.
    assert reached == sorted(reached) and reached[-1] > 0
    assert len(set(reached)) > len(moments) // 4
    print(f"{in_a_save} kills fell into a save; the newest steps were {reached}")
    code, out, err = finish(drive(workdir, *SAVED_OFTEN))
    assert code == 0 and "warning" not in err, err
    assert f"resuming from step {reached[-1]} of 96" in out
    assert_same_end(workdir, tmp_path / "straight", 96)
    # The partial checkpoints that the kills left are gone.
    names = {path.name for path in (workdir / "checkpoints").iterdir()}
    assert names == {str(step) for step in steps(workdir)}
    assert not (workdir / "damaged_checkpoints").exists()


# Ctrl-C itself is part of the next test, and of tests/distributed/test_preemption.py.
@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 0), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
    ids=["SIGTERM", "SIGINT"],
)
def test_a_signal_saves_and_stops(drive, undisturbed, tmp_path, number, status):
    # Nothing would be logged, saved or evaluated at step 15 without the signal.
    code, out, err = finish(drive(tmp_path, "--signal_at=14", f"--signal={number}"))
    assert (code, err) == (status, "")
    assert "stopped at step 15 and saved; the same command goes on\n" in out
    assert steps(tmp_path) == [0, 15]
    process = drive(tmp_path)
    _await_line(process, "step 20/40")
    process.send_signal(number)  # from outside, wherever it is
    code, out, err = finish(process)
    assert (code, err) == (status, "")
    stopped = int(re.search(r"^stopped at step (\d+) and saved", out, re.MULTILINE)[1])
    assert stopped >= 20 and steps(tmp_path)[-1] == stopped
    code, out, err = finish(drive(tmp_path))
    assert (code, err) == (0, "")
    assert f"resuming from step {stopped} of 40" in out
    assert_same_end(tmp_path, undisturbed, 40)


def test_a_second_interrupt_stops_at_once(drive, undisturbed, tmp_path):
    code, out, err = finish(drive(tmp_path, "--signal_at=25", "--signal=2", "--signal=2"))
    assert (code, err) == (130, "")
    assert "press Ctrl-C again to stop at once\ninterrupted\n" in out
    assert steps(tmp_path) == [0, 20]
    assert finish(drive(tmp_path))[0] == 0
    assert_same_end(tmp_path, undisturbed, 40)


def test_a_background_job_ignores_an_interrupt(drive, undisturbed, tmp_path):
    code, out, err = finish(
        drive(tmp_path, "--signal_at=14", "--signal=2", "--signal=2", ctrl_c=signal.SIG_IGN)
    )
    assert (code, err) == (0, "") and "stopping" not in out
    assert_same_end(tmp_path, undisturbed, 40)
