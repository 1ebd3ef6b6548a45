"""Whole runs of two processes: which one writes, the scores, and what a killed process costs."""

import json
import re
import shutil
import signal
import time

import pytest

from configs import synthetic_tiny
from input_pipeline.from_config import evaluation_data
from pgfl_jax.config import parse_config
from pgfl_jax.retrieval.evaluate import evaluate_checkpoint
from tests.multiprocess.launching import after_waiting, finish, free_port, train, two
from tests.report.events import pictures_of
from tests.runs import assert_same_end, history, launch, steps

pytestmark = pytest.mark.multiprocess

STEPS = 30
# A batch of the 16 queries has 512 / 16 rows, so the second process gets nothing but padding; those
# of the 48 gallery images have 64. Without the teachers, which test_steps.py trains, it compiles in
# less than half the time.
OPTIONS = {
    "eval.batch_size": 512,
    "train.epochs": 3.75,
    "train.checkpoint_every": 5,
    "model.pose_branches": False,
    "model.pooling": "gap",
}


# Of the runs of main.py: 10 steps.
MAIN = OPTIONS | {"train.epochs": 1.25, "train.pictures": 2}


def _start(workdir, data_dir):
    options = {**MAIN, "data.data_dir": data_dir}
    flags = [f"--config.{name}={value}" for name, value in options.items()]
    return [train(workdir, *flags, *process) for process in two(free_port())]


def _config(data_dir):
    values = synthetic_tiny.get_config()
    values.update_from_flattened_dict({**MAIN, "data.data_dir": str(data_dir)})
    return parse_config(values)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run of two processes that both find the data set not prepared."""
    folder = tmp_path_factory.mktemp("two")
    return folder, finish(_start(folder / "run", folder / "data"))


def test_process_0_alone_prints_and_writes(undisturbed):
    folder, ((code0, out0, err0), (code1, out1, err1)) = undisturbed
    assert (code0, code1) == (0, 0), err0 + err1
    assert (out1, after_waiting(err1)) == ("", "")
    prepared = after_waiting(err0)
    assert prepared.count("preparing ") == 1 and prepared.count("\n") == 1, err0
    lines = out0.splitlines()
    assert lines[0] == "evaluation at step 0"
    shown = [line.split("|")[0] for line in lines if line.startswith("step ")]
    assert shown == ["step  5/10 ", "step 10/10 "]
    assert lines[-1].startswith("best step ")
    workdir = folder / "run"
    assert {path.name for path in workdir.iterdir()} == {
        ".lock", "config.json", "manifest.json", "checkpoints", "metrics", "metrics.jsonl",
        "results", "training_images.npy",
    }  # fmt: skip
    assert len(list((workdir / "metrics").iterdir())) == 1
    assert [*pictures_of(workdir)] == [0, 10]
    logged = [line["step"] for line in history(workdir)]
    assert logged == [0, 5, 10, 10]
    assert json.loads((workdir / "manifest.json").read_text())["processes"] == 2
    versions = (folder / "data" / "synthetic_occluded_reid" / "tiny").iterdir()
    assert [path.name.count("incomplete") for path in versions] == [0]


def test_the_evaluation_is_that_of_one_process(undisturbed, tmp_path):
    folder, _ = undisturbed
    config = _config(folder / "data")
    workdir = shutil.copytree(folder / "run", tmp_path / "run")
    data = evaluation_data(config)
    rows = {
        name.rpartition("/")[2]: [
            batch["valid"].sum() / len(batch["valid"]) for batch in split.batches()
        ]
        for name, split in data.splits.items()
    }
    assert rows == {"query": [16 / 32], "query_holistic": [16 / 32], "gallery": [48 / 64]}
    results = evaluate_checkpoint(config, workdir, data)
    assert len(results) == 2
    for result in results:
        path = folder / "run" / "results" / f"{result['protocol']}.json"
        stored = json.loads(path.read_text())
        assert stored["step"] == result["step"] == 10
        assert stored["num_query"] == result["num_query"] == 16
        for name in ("mAP", "mINP"):
            assert stored[name] == pytest.approx(result[name], abs=1e-6)
        assert stored["cmc"] == pytest.approx(result["cmc"], abs=1e-6)


def _newest(workdir):
    return max(steps(workdir), default=-1) if (workdir / "checkpoints").exists() else -1


def _await_step(processes, workdir, step):
    deadline = time.monotonic() + 600
    while _newest(workdir) < step and time.monotonic() < deadline:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.01)


def _kill(processes, number, workdir, step):
    """Kill one process when ``step`` is saved; how the other one ends, and after how long."""
    _await_step(processes, workdir, step)
    killed = time.monotonic()
    processes[number].kill()
    outcome = finish(processes)
    assert outcome[number][0] == -signal.SIGKILL
    return outcome[1 - number], time.monotonic() - killed


def _drive(workdir):
    """Two processes of the training that needs no TensorFlow, and so starts sooner."""
    options = [f"--config.{name}={OPTIONS[name]}" for name in OPTIONS if name != "eval.batch_size"]
    command = "-m", "tests.faults.driver", f"--workdir={workdir}", *options
    return [launch(*command, *process) for process in two(free_port())]


def test_what_ends_a_process_loses_nothing(tmp_path):
    for code, _, err in finish(_drive(tmp_path / "straight")):
        assert code == 0, err
    workdir = tmp_path / "run"
    for number, step in ((1, 5), (0, 10)):
        processes = _drive(workdir)
        (code, _, err), seconds = _kill(processes, number, workdir, step)
        # JAX aborts it, or it ends with the error of a connection that broke.
        assert code == -signal.SIGABRT or f"error in process {1 - number}: " in err, err
        assert code != 0 and after_waiting(err), err
        assert seconds < 60
        assert step <= _newest(workdir) < STEPS
    # SIGTERM reaches only one of them; both stop at the same step.
    processes = _drive(workdir)
    _await_step(processes, workdir, 15)
    processes[1].send_signal(signal.SIGTERM)
    (code, out, err), (other, other_out, other_err) = finish(processes)
    assert (code, other, other_out) == (0, 0, ""), err
    assert after_waiting(err) == after_waiting(other_err) == ""
    stopped = int(re.search(r"^stopped at step (\d+) and saved", out, re.MULTILINE)[1])
    assert stopped == _newest(workdir) >= 15
    (code, out, err), (other, _, _) = finish(_drive(workdir))
    assert (code, other) == (0, 0), err
    assert out.startswith(f"resuming from step {stopped} of {STEPS}")
    assert_same_end(workdir, tmp_path / "straight", STEPS)
