"""The images that the network sees, from the bytes of a batch."""

import dataclasses

import jax
import numpy as np

from configs import default
from pgfl_jax.config import parse_config
from pgfl_jax.distributed.sharding import make_mesh, shard_batch
from pgfl_jax.network_input import network_input

DATA = dataclasses.replace(
    parse_config(default.get_config()).data, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.125)
)


def test_bytes_are_normalised_per_channel_and_erased_to_zero():
    images = np.full((2, 4, 3, 3), [51, 102, 255], np.uint8)
    erased = np.array([[1, 0, 3, 2], [2, 2, 2, 2]], np.int32)  # the second is empty
    expected = np.broadcast_to([(0.2 - 0.1) / 0.5, (0.4 - 0.2) / 0.25, 0.7 / 0.125], (2, 4, 3, 3))
    found = network_input({"images": images}, DATA)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    expected = expected.copy()
    expected[0, 1:3, 0:2] = 0
    found = network_input({"images": images, "erased": erased}, DATA)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_rectangle_shows_the_next_identity():
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (6, 4, 3, 3)).astype(np.uint8)  # three identities, two images
    erased = np.array([[0, 0, 4, 1], [1, 1, 3, 3], *[[0, 0, 0, 0]] * 3, [3, 0, 4, 3]], np.int32)
    data = dataclasses.replace(
        DATA,
        images_per_identity=2,
        augment=dataclasses.replace(DATA.augment, erasing_fill="image"),
    )
    expected = images.copy()
    expected[0, :, 0] = images[2, :, 0]
    expected[1, 1:3, 1:3] = images[3, 1:3, 1:3]
    expected[5, 3] = images[1, 3]
    wanted = network_input({"images": expected}, data)
    batch = {"images": images, "erased": erased}
    np.testing.assert_array_equal(network_input(batch, data), wanted)
    # The next identity may be on another device.
    spread = shard_batch(batch, make_mesh(jax.devices()[:3]))
    np.testing.assert_array_equal(network_input(spread, data), wanted)


def test_floats_are_taken_as_they_are():
    images = np.random.default_rng(0).normal(size=(2, 4, 3, 3)).astype(np.float32)
    np.testing.assert_array_equal(network_input({"images": images}, DATA), images)
