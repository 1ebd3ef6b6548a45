"""Which runtimes the processes that verify an artifact may find."""

from unittest import mock

import pytest


def hide(runtimes, folder):
    """Let no process that starts from now on import these runtimes."""
    for name in runtimes:
        text = f"raise ModuleNotFoundError('no module {name}', name='{name}')"
        (folder / f"{name}.py").write_text(text)
    return mock.patch.dict("os.environ", PYTHONPATH=str(folder))


def unverified():
    """A context without the processes that verify, for tests of something else."""
    return mock.patch("pgfl_jax.export.artifact.run_models", return_value=[])


@pytest.fixture(scope="module")
def onnxruntime_alone(tmp_path_factory):
    """Each ONNX file runs once, whether OpenVINO is installed or not."""
    with hide(["openvino"], tmp_path_factory.mktemp("hidden")):
        yield
