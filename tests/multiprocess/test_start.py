"""How processes find one another, and what stands in the way: each time in one line."""

import threading

import pytest

from pgfl_jax.distributed.meeting import Place, meet
from pgfl_jax.distributed.relay import Relay
from pgfl_jax.errors import UserError
from tests.multiprocess.launching import finish, free_port, train, two

pytestmark = pytest.mark.multiprocess

SLURM = {
    "SLURM_JOB_ID": "1",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_NTASKS": "2",
    "SLURM_LOCALID": "0",
}


def _meet(*places, timeout=10.0):
    """What each of some processes, here threads, gets from the meeting: None or the error."""
    results = {}

    def come(i, place):
        try:
            results[i] = meet(place, timeout)
        except UserError as error:
            results[i] = str(error)

    threads = [threading.Thread(target=come, args=item) for item in enumerate(places)]
    for thread in reversed(threads):  # process 0 comes last
        thread.start()
    for thread in threads:
        thread.join(60)
    return [results[i] for i in range(len(places))]


def _places(count, *numbers):
    address = f"localhost:{free_port()}"
    return [Place(address, count, number) for number in numbers]


def test_all_meet_and_the_port_is_free_again():
    places = _places(4, 0, 1, 2, 3)
    assert _meet(*places) == [None] * 4
    assert _meet(*places) == [None] * 4


def test_who_does_not_come_is_named_to_all():
    results = _meet(*_places(4, 0, 2), timeout=1.0)
    assert len(set(results)) == 1
    assert results[0].startswith("process 1, 3 of 4 did not come to localhost:")


def test_two_of_the_same_number_are_told():
    results = _meet(*_places(4, 0, 1, 1))
    assert set(results) == {
        "process 1 is started twice: every process needs a --process_id of its own"
    }


def test_another_count_is_told():
    first, _ = _places(2, 0, 1)
    other = Place(first.coordinator, 3, 1)
    message = "process 1 is started with --num_processes=3, process 0 with 2"
    assert _meet(first, other) == [message, message]


def test_a_missing_process_0_is_told():
    (result,) = _meet(*_places(2, 1), timeout=0.5)
    assert "process 0 does not answer there (Connection refused; tried for 0 s)" in result


def test_a_port_that_is_taken_is_told():
    places = _places(3, 0, 0)
    results = _meet(*places, timeout=2.0)
    assert sum("cannot listen on port" in result for result in results) == 1


FATAL = (
    b"F1125 08:50:36.5 4692 client.h:80] Terminating process because the JAX distributed service "
    b"detected fatal errors. This most likely indicates that another task died\n"
)
OMEN = b"E1125 08:50:36.5    4680 coordination_service.cc:1520] [36] Shutdown barrier has failed:\n"


def test_the_relay_puts_one_line_for_a_trace():
    relay = Relay(b"one line\n")
    given = [b"warning: w\n", OMEN, b"INTERNAL: more of it\n", FATAL, b"    @ 0x7f trace\n"]
    assert [relay.lines(line) for line in given] == [[given[0]], [], [], [b"one line\n"], []]
    assert relay.end() == []


def test_the_relay_lets_the_process_speak_for_itself():
    relay = Relay(b"one line\n")
    own = b"error in process 1: reason\n"
    assert [relay.lines(line) for line in (OMEN, own, FATAL)] == [[], [own], []]
    relay = Relay(b"one line\n")
    assert [relay.lines(line) for line in (FATAL, own)] == [[b"one line\n"], []]


def test_the_relay_hides_nothing_else(monkeypatch):
    relay = Relay(b"one line\n")
    assert relay.lines(b"[Gloo] Rank 1 is connected to 1 peer ranks.\n") == []
    assert relay.lines(OMEN) == [] and relay.lines(b"after\n") == []
    assert relay.overdue() == []
    monkeypatch.setattr("pgfl_jax.distributed.relay.PATIENCE", 0.0)
    assert relay.overdue() == [OMEN, b"after\n"]
    assert relay.lines(b"later\n") == [b"later\n"]


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        (["--process_id=1"], {}, "error: --coordinator and --num_processes not given; several "),
        (
            ["--coordinator=here", "--num_processes=2", "--process_id=0"],
            {},
            "error: --coordinator=here: must be HOST:PORT",
        ),
        ([], {"OMPI_COMM_WORLD_SIZE": "2"}, "error: OMPI_COMM_WORLD_SIZE=2: this seems to be one"),
    ],
)
def test_a_wrong_start_is_one_line(tmp_path, options, changes, message):
    ((code, out, err),) = finish([train(tmp_path, *options, **changes)])
    assert (code, out) == (1, "")
    assert err.startswith(message) and err.count("\n") == 1, err


def test_a_process_that_waits_in_vain_says_so(tmp_path):
    flags = two(free_port())[1]
    ((code, out, err),) = finish([train(tmp_path, *flags, "--start_timeout=1")])
    assert (code, out) == (1, "")
    assert err.startswith("error in process 1: --coordinator=localhost:"), err
    assert "process 0 does not answer there" in err and err.count("\n") == 1, err


def test_processes_that_do_not_agree_stop_before_step_1(tmp_path):
    # Found by way of what Slurm says of them.
    seeds = [["--config.seed=0"], ["--config.seed=1", "--config.data.data_dir=elsewhere"]]
    slurm = SLURM | {"JAX_COORDINATOR_PORT": str(free_port())}
    processes = [
        train(tmp_path, *options, **slurm, SLURM_PROCID=str(i)) for i, options in enumerate(seeds)
    ]
    for i, (code, out, err) in enumerate(finish(processes)):
        assert (code, out) == (1, ""), err
        assert err == (
            f"error in process {i}: the processes of the run differ in config.seed (process 1 not "
            "as process 0); start all of them with the same program, options and data\n"
        )
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_workdir_that_is_not_shared_is_told_before_step_1(tmp_path):
    folders = [tmp_path / "here", tmp_path / "there"]
    processes = [
        train(folder, *flags, "--mode=evaluate")
        for folder, flags in zip(folders, two(free_port()), strict=True)
    ]
    for i, (code, out, err) in enumerate(finish(processes)):
        assert (code, out) == (1, ""), err
        assert err.startswith(
            f"error in process {i}: --workdir={folders[i]}: process 1 does not see there what "
            "process 0 writes"
        )
        assert err.count("\n") == 1
    assert not any(any(folder.iterdir()) for folder in folders)
