"""What the training loop asks of the devices: nothing between two progress lines."""

import dataclasses

import jax
import pytest
from jax._src import array  # counting is not possible from outside

from input_pipeline.from_config import evaluation_data, training_data
from pgfl_jax.train import train

ONE = jax.devices()[:1]


@pytest.fixture
def counted(monkeypatch):
    """Counts compilations, and arrays that are copied to the host."""
    counts = {"compiled": 0, "fetched": 0}

    def listener(event, duration, **_):
        counts["compiled"] += event == "/jax/core/compile/backend_compile_duration"

    original = array.ArrayImpl._value.fget

    def fetched(self):
        counts["fetched"] += 1
        return original(self)

    jax.monitoring.register_event_duration_secs_listener(listener)
    monkeypatch.setattr(array.ArrayImpl, "_value", property(fetched))
    yield counts
    jax.monitoring.unregister_event_duration_listener(listener)


@pytest.mark.usefixtures("small_network")
def test_twenty_steps_compile_nothing_and_fetch_only_what_is_logged(tiny_config, tmp_path, counted):
    config = tiny_config(
        **{
            "train.epochs": 5.0,
            "train.log_every": 10,
            "train.eval_every": 1000,
            "train.checkpoint_every": 1000,
        }
    )
    training, evaluation = training_data(config), evaluation_data(config)
    seen = {}

    def batches(start):
        # Asked for ahead of its step: the batch of index 12 is fetched when step 11 is due.
        for index, batch in enumerate(training.batches(start), start):
            seen[index] = dict(counted)
            yield batch

    train(
        config,
        tmp_path,
        dataclasses.replace(training, batches=batches),
        evaluation,
        devices=ONE,
    )
    during = {name: seen[32][name] - seen[12][name] for name in counted}
    metrics = 1 + 2 * 3 + 2 + 2 + 1  # total, id and triplet by branch, two terms, two kd, norm
    # Between them are the progress lines of steps 20 and 30, with the metrics of ten steps each;
    # the learning rate that each one writes comes from the host.
    assert during == {"compiled": 0, "fetched": 2 * 10 * metrics + 2}
