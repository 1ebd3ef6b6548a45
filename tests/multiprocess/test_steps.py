"""The same training on one process with four devices and on two processes with two each."""

import itertools

import numpy as np
import pytest

from input_pipeline.from_config import training_data
from pgfl_jax.network_input import network_input
from tests.multiprocess.launching import finish, free_port
from tests.runs import launch

pytestmark = pytest.mark.multiprocess


@pytest.fixture(scope="module")
def dumps(tiny_config, tmp_path_factory):
    """The results of a single process, and of each of two processes."""
    folder = tmp_path_factory.mktemp("steps")
    config = tiny_config()
    batches = list(itertools.islice(training_data(config).batches(0), 4))
    names = batches[0].keys() - {"indices", "erased"}
    whole = {name: np.stack([batch[name] for batch in batches]) for name in names}
    whole["images"] = np.stack([network_input(batch, config.data) for batch in batches])
    np.savez(folder / "batches.npz", **whole)

    def start(name, devices, *place):
        files = folder / f"{name}.npz", folder / "batches.npz"
        command = "-m", "tests.multiprocess.steps", *files, *place
        return launch(*command, env={"JAX_NUM_CPU_DEVICES": str(devices)})

    address = f"localhost:{free_port()}"
    for processes in (
        [start("alone", 4)],
        [start(f"both{i}", 2, address, 2, i) for i in range(2)],
    ):
        for code, _, err in finish(processes, timeout=600):
            assert code == 0, err
    return [dict(np.load(folder / f"{name}.npz")) for name in ("alone", "both0", "both1")]


def _named(dump, kind):
    return {name: value for name, value in dump.items() if name.split("/")[1] == kind}


def test_the_hardest_triplets_are_those_of_the_whole_batch(dumps):
    alone, *both = (_named(dump, "mined") for dump in dumps)
    assert len(alone) >= 2 * 4
    for part in both:
        for name, mined in alone.items():
            np.testing.assert_array_equal(part[name], mined)


@pytest.mark.parametrize(("model", "arrays"), [(1, 30), (2, 20)])  # the second without teachers
def test_losses_and_parameters_are_the_same(dumps, model, arrays):
    for kind, least in (("losses", 4), ("state", arrays)):
        alone, *both = (_named(dump, kind) for dump in dumps)
        for name in (names := [name for name in alone if name.startswith(f"model {model}/")]):
            # The steps amplify float64's 1e-16 (tests/distributed/test_sharding.py).
            tolerance = 1e-10 * max(np.abs(alone[name]).max(), 0.01)
            for part in both:
                np.testing.assert_allclose(part[name], alone[name], rtol=0, atol=tolerance)
        assert len(names) >= least
    states = [value for name, value in _named(dumps[0], "losses").items() if name.endswith("total")]
    assert np.ptp([float(value) for value in states]) > 0.1  # something was learned


def test_the_classifiers_are_split_within_a_process(dumps):
    for dump in dumps:
        assert dump["model 1/shard of the classifier"].tolist() == [16, 128]
        assert dump["model 2/shard of the classifier"].tolist() == [16, 64]
