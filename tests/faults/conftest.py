import json

import pytest

from tests.runs import finish, launch, shared_by_workers

STEPS = 40
# Without the teachers a run starts sooner.
NETWORK = {"model.pose_branches": False}


@pytest.fixture(scope="session")
def compiled_once(tmp_path_factory):
    """The environment of runs that share what they compile."""
    with shared_by_workers(tmp_path_factory, "compiled") as folder:
        return {
            "JAX_COMPILATION_CACHE_DIR": str(folder),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }


@pytest.fixture(scope="session")
def drive(compiled_once):
    """Starts the small training that needs no TensorFlow: 40 steps, a save every 20."""
    values = {"train.epochs": 5.0, "train.checkpoint_every": 20} | NETWORK
    usual = [f"--config.{name}={value}" for name, value in values.items()]

    def start(workdir, *options, env=None, **how):
        command = "-m", "tests.faults.driver", f"--workdir={workdir}", *usual, *options
        return launch(*command, env=compiled_once | (env or {}), **how)

    return start


@pytest.fixture(scope="session")
def undisturbed(drive, tmp_path_factory):
    """The workdir of a training that nothing happened to; not to be changed."""
    with shared_by_workers(tmp_path_factory, "undisturbed") as workdir:
        if not (workdir / "results").exists():  # else another worker has trained it
            code, _, err = finish(drive(workdir))
            assert code == 0, err
        assert json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])["step"] == STEPS
        return workdir
