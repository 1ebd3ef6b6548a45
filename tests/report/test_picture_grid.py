"""The grid of pictures in TensorBoard: its pixels, and what it costs."""

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow as tf

from input_pipeline.from_config import evaluation_data, training_data
from pgfl_jax.distributed.sharding import make_mesh
from pgfl_jax.experiment import Experiment
from pgfl_jax.report.painting import ENERGY_COLOR, PART_COLORS
from pgfl_jax.report.step_log import StepLog
from tests.report.events import pictures_of


def painted(image, color, strength):
    """Colours of cells over a grey picture, enlarged by TensorFlow."""
    color, strength = (
        tf.image.resize(values, image.shape[:2]).numpy() for values in (color, strength[..., None])
    )
    grey = (image * [0.299, 0.587, 0.114]).sum(axis=-1, keepdims=True) / 2
    return grey * (1 - 0.8 * strength) + 0.8 * color


def test_the_grid_is_what_the_network_sees(tiny_config, tmp_path, small_network):
    config = tiny_config(**{"train.pictures": 3})
    training = training_data(config)
    data = evaluation_data(config, training)
    experiment = Experiment.create(config, num_identities=16, num_images=160)
    state = experiment.init_state(make_mesh(jax.devices()[:1]))
    later = state.replace(step=state.step + 20)
    compiled = []

    def listener(event, *_, **__):
        compiled.append(event)

    with StepLog(tmp_path, None, [], experiment, training.filenames) as log:
        log.pictures(state, data.pictures)
        jax.monitoring.register_event_duration_secs_listener(listener)
        try:
            log.pictures(later, data.pictures)
        finally:
            jax.monitoring.unregister_event_duration_listener(listener)
    assert not [event for event in compiled if "compile" in event]
    found = pictures_of(tmp_path)
    assert [*found] == [0, 20] and (found[0] == found[20]).all()

    batch = data.pictures()
    assert batch["images"].shape == (3, 64, 32, 3)
    for split, images in (("query", batch["images"][:2]), ("query_holistic", batch["images"][2:])):
        (of_split,) = data.splits[f"{config.data.dataset}/{split}"].batches()
        assert all((of_split["images"] == image).all((1, 2, 3)).any() for image in images)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    normal = (batch["images"] / 255 - np.array(config.data.mean)) / np.array(config.data.std)
    outputs = experiment.model.apply(variables, jnp.float32(normal), train=False)
    predicted = 1 / (1 + np.exp(-np.asarray(outputs.map_logits, np.float64)))
    features = np.asarray(outputs.features, np.float64)
    channels = features.shape[-1] // 8
    for place, image in enumerate(batch["images"]):
        energy = sum(
            predicted[place, ..., part] * features[place, ..., part * channels + one] ** 2
            for part in range(8)
            for one in range(channels)
        )
        energy /= energy.max()
        panels = [image]
        for maps in (batch["part_maps"][place], predicted[place]):
            color = PART_COLORS[maps.argmax(-1)] * maps.max(-1)[..., None]
            panels.append(painted(image, color, maps.max(-1)))
        panels.append(painted(image, np.multiply.outer(energy, ENERGY_COLOR), energy))
        top, left = place // 2 * 68, place % 2 * 132
        shown = found[0][top : top + 64, left : left + 128]
        np.testing.assert_allclose(shown, np.concatenate(panels, axis=1), atol=2)
    assert found[0].shape == (64 + 4 + 64, 128 + 4 + 128, 3)
    assert not found[0][68:, 132:].any()
