"""A full disk: one line says what is safe, and later the run goes on.

The first tests mount a small disk where that is permitted, and limit the size of files elsewhere.
The others always limit the size of files.
"""

import os
import resource
import signal
import subprocess
import tempfile

import pytest

from pgfl_jax.errors import full_disk
from pgfl_jax.report.writers import MetricWriter, write_json
from tests.faults.conftest import STEPS
from tests.runs import assert_same_end, finish, leaves, start, steps

pytestmark = pytest.mark.faults

MIB = 2**20
PAGE = 4096  # the unit of allocation on a tmpfs
KEPT = "free space, then the same command goes on\n"


# ``rooms`` are the bytes left free. The more there are, the later a run notices: at the start,
# while it logs, or in the background while step 20 is saved.
class Disk:
    """A tmpfs on ``path``, filled by an unrelated file."""

    rooms = 0, 2 * PAGE, 24 * PAGE  # a checkpoint takes 54

    def __init__(self, path):
        self.path, self.reason, self.how = path, "no space left on device", {}
        self._mount()

    def _mount(self):
        command = "mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(self.path)
        subprocess.run(command, check=True, capture_output=True)

    def shrink(self, left):
        self.free()
        room = os.statvfs(self.path)
        (self.path / "others").write_bytes(bytes(room.f_bavail * room.f_frsize - left))

    def free(self):
        (self.path / "others").unlink(missing_ok=True)

    def close(self):
        subprocess.run(["umount", self.path], check=True)


class Limit:
    """A limit on the size of every file, which raises another error."""

    rooms = PAGE, 4 * PAGE, 12 * PAGE  # the largest file of a checkpoint takes 15

    def __init__(self, path):
        self.path, self.reason = path, "file too large"
        self.free()

    def shrink(self, left):
        self.how = {"file_size": left}

    def free(self):
        self.how = {}

    def close(self):
        pass


def _mounts():
    """Whether mounting is permitted."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            Disk(folder).close()
        except (OSError, subprocess.CalledProcessError):
            return False
        return True


@pytest.fixture
def disk(tmp_path):
    made = (Disk if _mounts() else Limit)(tmp_path)
    yield made
    made.close()


def _assert_told(finished, workdir, step, reason):
    code, _, err = finished
    assert code == 1 and err.count("\n") == 1, err
    kept = "nothing was saved yet" if step is None else f"the checkpoint of step {step} is intact"
    assert err == f"error: {workdir}: {reason}; {kept}; {KEPT}"


def test_a_full_disk_costs_nothing_but_time(drive, undisturbed, disk):
    workdir = disk.path / "run"
    assert finish(drive(workdir, "--signal_at=2", f"--signal={signal.SIGTERM}"))[0] == 0
    assert steps(workdir) == [0, 3]
    for room in disk.rooms:
        disk.shrink(room)
        _assert_told(finish(drive(workdir, **disk.how)), workdir, 3, disk.reason)
        assert steps(workdir) == [0, 3]
        leaves(workdir, 3)
    disk.free()
    code, out, err = finish(drive(workdir))
    assert (code, err) == (0, "") and "resuming from step 3 of" in out
    assert_same_end(workdir, undisturbed, STEPS)


def test_a_disk_that_is_full_before_the_first_save(drive, undisturbed, disk):
    workdir = disk.path / "run"
    disk.shrink(disk.rooms[-1])
    _assert_told(finish(drive(workdir, **disk.how)), workdir, None, disk.reason)
    disk.free()
    code, _, err = finish(drive(workdir))
    assert code == 0 and err.endswith("holds a run, but no checkpoint; it starts over\n")
    assert_same_end(workdir, undisturbed, STEPS)


@pytest.mark.slow
def test_through_the_command_line(tiny_data_dir, tmp_path):
    short = "--config.train.epochs=2.5", "--config.train.eval_every=10"
    finished = finish(start(tiny_data_dir, tmp_path, *short, file_size=MIB))
    _assert_told(finished, tmp_path, None, "file too large")


def _until_full(write):
    with pytest.raises(Exception) as error:
        for number in range(100_000):
            write(number)
    return error.value


@pytest.mark.parametrize("file", ["metrics.jsonl", "events", "results"])
def test_little_files_that_find_no_room(tmp_path, file):
    """Under a limit on the size of files, which is lifted afterwards."""
    writer = MetricWriter(tmp_path, None)
    silent = open(os.devnull, "w")  # noqa: SIM115
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        if file == "results":
            write_json(tmp_path / "results.json", {"a": 1})
            error = _until_full(lambda n: write_json(tmp_path / "results.json", {"a": "x" * n}))
            assert str(tmp_path / "results.json") in str(error)
            assert not (tmp_path / "results.json.tmp").exists()
            assert (tmp_path / "results.json").stat().st_size <= 5000
        else:
            if file == "events":
                writer._file.close()
                writer._file = silent
            else:
                writer._summary.close()
                writer._summary = _Silent()
            error = _until_full(lambda n: writer.write(n, {"a": 0.5}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        silent.close()
        writer.close()
    assert full_disk(error) == "file too large"


class _Silent:
    def write_scalars(self, step, scalars):
        pass

    flush = close = lambda self: None
