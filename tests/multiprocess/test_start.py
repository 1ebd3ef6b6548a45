"""How the processes of a run join, what can go wrong, and how they end when one fails."""

import math
import os
import signal
import socket

import jax
import pytest

from pgfl_jax.distributed import launch
from pgfl_jax.errors import UserError
from tests import runs
from tests.multiprocess.launching import finish, free_port, train, two, waits

pytestmark = pytest.mark.multiprocess

SLURM = {
    "SLURM_JOB_ID": "1",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_NTASKS": "2",
    "SLURM_LOCALID": "0",
}


def _enter(*arguments):
    with launch.joined(*arguments):
        pass


@pytest.fixture
def alone(monkeypatch):
    """An environment without launchers."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "PMI_", "TPU_", "JAX_COORDINATOR", "WORLD_SIZE",
                            "MEGASCALE_", "JOB_COMPLETION_INDEX")):  # fmt: skip
            monkeypatch.delenv(name)


@pytest.fixture
def fake(alone, monkeypatch):
    """Replaces JAX's part: no process is joined, and one ends only by SystemExit."""

    class Jax:
        calls = ()  # the arguments of jax.distributed.initialize
        processes = 1
        error = None

    def initialize(**arguments):
        Jax.calls += (arguments,)
        if Jax.error:
            raise Jax.error

    def leave(status):
        raise SystemExit(status)

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(jax, "process_count", lambda: Jax.processes)
    monkeypatch.setattr(os, "_exit", leave)
    return Jax


def _error(capsys, *arguments):
    """The error with which joining ends the process."""
    with pytest.raises(SystemExit, match=r"^1$"):
        _enter(*arguments)
    waiting, error = capsys.readouterr().err.splitlines()
    assert " waits up to 300 s for the others" in waiting
    return error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, None, 1), "--coordinator and --num_processes not given; several processes need "),
        (("host:1", None, None), "--num_processes and --process_id not given; several processes "),
        (("here", 2, 0), "--coordinator=here: must be HOST:PORT"),
        (("here:port", 2, 0), "--coordinator=here:port: must be HOST:PORT"),
        (("here:65536", 2, 0), "--coordinator=here:65536: must be HOST:PORT"),
        (("here:1", 0, 0), "--num_processes=0: must be above 0"),
        (("here:1", 2, 2), r"--process_id=2: must be in \[0, 2\), for --num_processes=2"),
        ((None, 1, 1), "--coordinator not given; several processes need "),
    ],
)
def test_wrong_arguments_are_named(alone, arguments, message):
    with pytest.raises(UserError, match=f"^{message}"):
        _enter(*arguments)


@pytest.mark.parametrize(
    ("environment", "signs"),
    [
        ({}, {}),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "1", "WORLD_SIZE": "1"}, {}),
        # In a batch script without srun there is no step, and one process.
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8"}, {}),
        ({"SLURM_STEP_NUM_TASKS": "16"}, {"SLURM_STEP_NUM_TASKS": (16, 16)}),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, {"OMPI_COMM_WORLD_SIZE": (2, 2)}),
        ({"PMI_SIZE": "3"}, {"PMI_SIZE": (3, 3)}),
        ({"WORLD_SIZE": "4"}, {"WORLD_SIZE": (4, 4)}),
        ({"TPU_WORKER_HOSTNAMES": "a,b,c,d"}, {"TPU_WORKER_HOSTNAMES": (4, math.inf)}),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, {}),
        ({"TPU_PROCESS_ADDRESSES": "a:1,b:1"}, {"TPU_PROCESS_ADDRESSES": (2, math.inf)}),
        ({"MEGASCALE_NUM_SLICES": "2"}, {"MEGASCALE_NUM_SLICES": (2, math.inf)}),
        ({"JOB_COMPLETION_INDEX": "0"}, {"JOB_COMPLETION_INDEX": (2, math.inf)}),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, {"JAX_COORDINATOR_ADDRESS": (2, math.inf)}),
        ({"TPU_ML_PLATFORM": "JAX"}, {"TPU_ML_PLATFORM": (1, math.inf)}),
        ({"TPU_ML_PLATFORM": "JAX", "TPU_SKIP_MDS_QUERY": "1"}, {}),
    ],
)
def test_what_launchers_say(alone, monkeypatch, environment, signs):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert launch.launcher_signs() == signs


def test_without_signs_or_by_request_nobody_is_joined(fake, monkeypatch):
    _enter(None, None, None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    _enter(None, 1, None)
    _enter(None, 1, 0)
    assert fake.calls == ()


def test_processes_that_jax_counts_but_nobody_joined_are_refused(fake):
    fake.processes = 4
    for number in (None, 1):
        with pytest.raises(UserError, match=r"^JAX counts 4 processes, which have not been joined"):
            _enter(None, number, None)


def test_a_given_place_is_not_looked_for(fake):
    fake.processes = 2
    _enter("localhost:1", 2, 1)
    (call,) = fake.calls
    assert call == {
        "coordinator_address": "localhost:1", "num_processes": 2, "process_id": 1,
        "cluster_detection_method": "deactivate",  # else a Slurm task would get one device alone
        "initialization_timeout": 300, "heartbeat_timeout_seconds": 60,
    }  # fmt: skip


def test_jax_finds_the_processes_of_a_launcher(fake, monkeypatch, capsys):
    fake.processes = 2
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    _enter(None, None, None)
    (call,) = fake.calls
    assert call == {"initialization_timeout": 300, "heartbeat_timeout_seconds": 60}
    said = "a process with SLURM_STEP_NUM_TASKS=2 waits up to 300 s for the others\n"
    assert capsys.readouterr().err == said


def test_a_single_tpu_machine_is_no_error(fake, monkeypatch):
    monkeypatch.setenv("TPU_ML_PLATFORM", "JAX")
    _enter(None, None, None)
    assert len(fake.calls) == 1


@pytest.mark.parametrize("found", [1, 3])
def test_another_number_than_the_launchers_is_an_error(fake, monkeypatch, capsys, found):
    """As from a JAX that no longer knows this launcher, but does not say so."""
    fake.processes = found
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    error = _error(capsys, None, None, None)
    assert error == (
        "error: SLURM_STEP_NUM_TASKS=2: this seems to be one of several processes, but JAX has "
        f"joined {found}; give --coordinator, --num_processes and --process_id, or "
        "--num_processes=1 for a run of this process alone"
    )


def test_a_launcher_that_jax_fails_to_ask_is_named(fake, monkeypatch, capsys):
    fake.error = RuntimeError("Kubernetes API Error:\n403 - Forbidden")
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    error = _error(capsys, None, None, None)
    assert error.startswith(
        "error: JOB_COMPLETION_INDEX=0: this seems to be one of several processes, but JAX cannot "
        "find the others (Kubernetes API Error: 403 - Forbidden; on Kubernetes it needs pip "
    )


def test_another_count_than_the_others_is_an_error(fake, capsys):
    fake.processes = 2
    assert _error(capsys, "localhost:1", 3, 1) == (
        "error in process 1: process 1 is started with --num_processes=3, but 2 processes have "
        "joined; give all of them the same number"
    )


def test_a_port_that_is_taken_is_an_error(fake, capsys):
    with socket.create_server(("", 0)) as server:
        address = f"localhost:{server.getsockname()[1]}"
        with pytest.raises(SystemExit, match=r"^1$"):
            _enter(address, 2, 0)
    error = capsys.readouterr().err
    assert error.startswith(f"error in process 0: --coordinator={address}: process 0 cannot listen")
    assert error.count("\n") == 1 and fake.calls == ()


def test_different_numbers_of_devices_are_an_error(fake, monkeypatch, capsys):
    class Device:
        def __init__(self, process_index):
            self.process_index = process_index

    fake.processes = 2
    monkeypatch.setattr(jax, "devices", lambda: [Device(i) for i in (0, 1, 1)])
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert _error(capsys, "localhost:1", 2, 1) == (
        "error in process 1: the processes of the run have 1, 2 devices; every one must have as "
        "many as the others"
    )


def test_a_launcher_that_jax_does_not_know_ends_main_in_one_line(tmp_path):
    ((code, out, err),) = finish([train(tmp_path, "--start_timeout=5", OMPI_COMM_WORLD_SIZE="2")])
    waiting, error = err.splitlines()
    assert (code, out) == (1, "")
    assert waiting == "a process with OMPI_COMM_WORLD_SIZE=2 waits up to 5 s for the others"
    assert error.startswith("error: OMPI_COMM_WORLD_SIZE=2: this seems to be one of several proce")
    assert list(tmp_path.iterdir()) == []


def _join(what, *options, devices=1):
    return runs.launch("-m", "tests.multiprocess.joining", what, devices, *options)


def test_a_process_that_waits_in_vain_ends_in_time():
    """Process 1 without process 0, and process 0 without process 1: JAX aborts them."""
    ports = free_port(), free_port()
    started = [
        _join("nothing", *two(port)[number], "--start_timeout=3")
        for number, port in zip((1, 0), ports, strict=True)
    ]
    outcomes = finish(started, timeout=120)
    for number, port, (code, out, err) in zip((1, 0), ports, outcomes, strict=True):
        assert code == -signal.SIGABRT and out == ""
        assert err.startswith(waits(number, port, timeout=3)), err


def test_of_two_processes_with_one_number_one_ends():
    flags = two(free_port())
    started = [_join("nothing", *flags[i], "--start_timeout=5") for i in (0, 1, 1)]
    codes = [code for code, _, _ in finish(started, timeout=120)]
    assert codes[1:].count(0) <= 1, codes


RESTART = (
    "If another process of the run ended first, its own output says why. Start all of them again: "
    "they go on from the newest checkpoint, if any\n"
)


@pytest.mark.parametrize(
    ("what", "number", "error"),
    [
        # Looks like the loss of another process, but is this process's own error.
        ("memory", 0, "JaxRuntimeError: RESOURCE_EXHAUSTED: NCCL failed to allocate memory"),
        ("bug", 1, "ZeroDivisionError: a bug"),
    ],
)
def test_a_process_shows_its_own_error_and_the_other_ends_too(what, number, error):
    outcomes = finish([_join(what, *flags) for flags in two(free_port())], timeout=120)
    code, out, err = outcomes[number]
    assert (code, out) == (1, f"process {number} of 2\n")
    assert "Traceback (most recent call last)" in err and "in work\n" in err
    kind = error.split(":")[0]
    last = f"{error}\nerror in process {number}: {kind}, see above. {RESTART}"
    assert err.endswith(last), err
    code, out, _ = outcomes[1 - number]
    assert code in (1, -signal.SIGABRT) and out == f"process {1 - number} of 2\n"


def test_processes_that_do_not_agree_stop_before_step_1(tmp_path):
    # JAX finds them by Slurm's variables.
    seeds = [["--config.seed=0"], ["--config.seed=1", "--config.data.data_dir=elsewhere"]]
    slurm = SLURM | {"JAX_COORDINATOR_PORT": str(free_port())}
    processes = [
        train(tmp_path, *options, **slurm, SLURM_PROCID=str(i)) for i, options in enumerate(seeds)
    ]
    for i, (code, out, err) in enumerate(finish(processes)):
        assert (code, out) == (1, ""), err
        assert err == (
            "a process with SLURM_STEP_NUM_TASKS=2 waits up to 300 s for the others\n"
            f"error in process {i}: the processes of the run differ in config.seed (process 1 not "
            "as process 0); start all of them with the same program, options and data\n"
        )
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_workdir_that_is_not_shared_is_named_before_step_1(tmp_path):
    folders, port = [tmp_path / "here", tmp_path / "there"], free_port()
    processes = [
        train(folder, *flags, "--mode=evaluate")
        for folder, flags in zip(folders, two(port), strict=True)
    ]
    for i, (code, out, err) in enumerate(finish(processes)):
        assert (code, out) == (1, ""), err
        assert err.startswith(
            f"{waits(i, port)}error in process {i}: --workdir={folders[i]}: process 1 does not see "
            "what process 0 writes there"
        )
        assert err.count("\n") == 2
    assert not any(any(folder.iterdir()) for folder in folders)
