"""Files of weights with the names that their authors' code writes, and networks to read them."""

import contextlib
from unittest import mock

import numpy as np
import pytest

from pgfl_jax.models.backbones import BACKBONES
from pgfl_jax.pretrained import PretrainedError, load_backbone, save_state_dict
from tests.test_pretrained import abstract


@contextlib.contextmanager
def narrow_networks(networks):
    """A context with networks as deep as the published ones, with fewer channels."""
    abstract.cache_clear()
    with mock.patch.dict(BACKBONES, networks):
        yield
    abstract.cache_clear()


def drawn(shapes):
    """Random arrays of these shapes."""
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def dense(name, outputs, inputs):
    """The shapes of a dense layer."""
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name, channels):
    """The shapes of a LayerNorm."""
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def prefixed(prefix, arrays):
    return {prefix + name: value for name, value in arrays.items()}


def load(arrays, path, backbone):
    """What is read from a file of these arrays, for a map of 4x2 cells."""
    save_state_dict(path, arrays)
    return load_backbone(path, abstract(backbone), map_shape=(4, 2))


def assert_one_line(arrays, backbone, message, path):
    """A network refuses a file."""
    with pytest.raises(PretrainedError, match=message) as error:
        load(arrays, path, backbone)
    assert "\n" not in str(error.value)
