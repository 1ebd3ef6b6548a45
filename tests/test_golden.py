"""Stored values of the PyTorch twin, for machines without PyTorch.

``python -m studies.pytorch.golden`` writes tests/golden/*.npz in float64. Each file records its
origin: PyTorch's version, the seed and the configurations.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import synthetic_tiny
from pgfl_jax.config import LossConfig, parse_config
from pgfl_jax.experiment import Experiment
from pgfl_jax.losses import kd_scale, total_loss
from pgfl_jax.models import BranchOutputs, PGFLOutputs
from pgfl_jax.pretrained import to_state_dict
from pgfl_jax.train_state import TrainState
from pgfl_jax.train_step import loss_and_gradients
from studies.pytorch.random_weights import draw_batch, draw_variables

FOLDER = Path(__file__).parent / "golden"


def _read(name):
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        stored = dict(file)
    return json.loads(str(stored.pop("origin"))), stored


LOSSES_ORIGIN, LOSSES = _read("losses")


def _vector(values):
    return np.array([float(values[name]) for name in sorted(values)])


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def _total(drawn, batch, config, epoch):
    branches = [
        BranchOutputs(*(drawn[f"{name}.{field}"] for field in BranchOutputs._fields))
        for name in ("main", "foreground", "parts")
    ]
    cross = drawn["cross.0"], drawn["cross.1"]
    outputs = PGFLOutputs(drawn["features"], *branches, cross, drawn["maps"])
    return total_loss(outputs, batch, config, kd_scale=kd_scale(epoch, config))


@pytest.mark.parametrize("variant", LOSSES_ORIGIN["variants"])
def test_losses(variant):
    config = LossConfig(**LOSSES_ORIGIN["variants"][variant])
    inputs = {
        name.removeprefix("in."): jnp.asarray(value)
        for name, value in LOSSES.items()
        if name.startswith("in.")
    }
    batch = {name: inputs.pop(name) for name in ("labels", "part_maps", "visibility")}
    # Not jitted: the variants then share their compiled operations, which halves the time.
    gradients, terms = jax.grad(_total, has_aux=True)(inputs, batch, config, LOSSES_ORIGIN["epoch"])
    assert len(terms) == (13 if variant == "one_teacher" else 15)
    assert min(map(float, terms.values())) > 0
    np.testing.assert_allclose(_vector(terms), LOSSES[f"{variant}.terms"], rtol=1e-12)
    found = np.concatenate([np.ravel(gradients[name]) for name in inputs])
    np.testing.assert_allclose(found, LOSSES[f"{variant}.gradients"], rtol=1e-10, atol=1e-14)


def test_network():
    origin, stored = _read("network")
    values = synthetic_tiny.get_config()
    values.update_from_flattened_dict({"data.height": 32, "data.width": 16})
    values.loss.update(origin["variants"]["all"])
    experiment = Experiment.create(
        parse_config(values), num_identities=origin["identities"], num_images=16
    )
    variables = draw_variables(experiment, origin["seed"], np.float64)
    batch = draw_batch(origin["seed"])
    state = TrainState(jnp.zeros((), jnp.int32), **variables, opt_state=(), average=None)

    @jax.jit
    def step(state, batch):
        outputs, _ = experiment.model.apply(
            {"params": state.params, "batch_stats": state.batch_stats},
            *(batch[name] for name in ("images", "part_maps", "visibility")),
            train=True,
            mutable=["batch_stats"],
        )
        return outputs, *loss_and_gradients(experiment, state, batch)

    outputs, gradients, statistics, terms = step(state, batch)
    logits = {
        f"{name}_logits": getattr(outputs, name).logits for name in ("main", "foreground", "parts")
    }
    logits |= {f"cross_{i}_logits": value for i, value in enumerate(outputs.cross_logits)}
    for name, value in logits.items():
        np.testing.assert_allclose(value[:, : origin["identities"]], stored[name], rtol=1e-10)
    np.testing.assert_allclose(_vector(terms), stored["terms"], rtol=1e-10)
    for name, tree in (
        ("gradient_norms", {"params": gradients}),
        ("statistic_norms", {"batch_stats": statistics}),
    ):
        arrays = to_state_dict(tree, origin["identities"])  # the norms are sorted by these names
        norms = {
            name: np.linalg.norm(x) for name, x in arrays.items() if not name.endswith("tracked")
        }
        np.testing.assert_allclose(_vector(norms), stored[name], rtol=1e-8)
