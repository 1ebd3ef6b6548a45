import json

import pytest

from tests.runs import finish, launch

STEPS = 40


@pytest.fixture(scope="session")
def compiled_once(tmp_path_factory):
    """The environment of runs that share what they compile."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


@pytest.fixture(scope="session")
def drive(compiled_once):
    """Starts the small training that needs no TensorFlow: 40 steps, saved every 20."""

    def start(workdir, *options, env=None, **how):
        return launch(
            "-m", "tests.faults.driver", f"--workdir={workdir}", "--config.train.epochs=5.0",
            "--config.train.checkpoint_every=20", *options,
            env=compiled_once | (env or {}), **how,
        )  # fmt: skip

    return start


@pytest.fixture(scope="session")
def undisturbed(drive, tmp_path_factory):
    """The workdir of a training that nothing happened to."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    code, _, err = finish(drive(workdir))
    assert code == 0, err
    assert json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])["step"] == STEPS
    return workdir
