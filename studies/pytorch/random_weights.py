"""Reproducible random weights and batches, with or without PyTorch."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from pgfl_jax.experiment import Experiment


class Noise:
    """Reproducible noise of mean 0 and variance 1.

    The noise is uniform and made from the raw bits of PCG64. NumPy guarantees these bits across
    versions, but not its distributions.

    >>> Noise(0)(3).round(3).tolist()
    [0.474, -0.797, -1.59]
    """

    def __init__(self, seed: int):
        """Start a stream."""
        self._bits = np.random.PCG64(seed)

    def uniform(self, *shape: int) -> np.ndarray:
        """Float64 values in [0, 1)."""
        raw = self._bits.random_raw(math.prod(shape)).reshape(shape)
        return (raw >> np.uint64(11)) * 2.0**-53

    def __call__(self, *shape: int) -> np.ndarray:
        """Float64 values in ±√3."""
        return (self.uniform(*shape) - 0.5) * math.sqrt(12)


def draw_variables(experiment: Experiment, seed: int, dtype: Any) -> dict[str, Any]:
    """Weights of precision ``dtype``, none of them trivially 0 or 1, with logits of order 1.

    Initial weights would hide differences: scales are 1, biases 0, and logits nearly equal.
    """
    noise = Noise(seed)
    state = experiment.abstract_state()

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name, owner = path[-1].key, path[-2].key
        drawn = noise(*leaf.shape)
        if name == "power":
            value = np.asarray(3.0)
        elif owner.endswith("_classifier"):
            real = np.arange(leaf.shape[1]) < experiment.model.num_identities
            value = 1.5 / math.sqrt(leaf.shape[0]) * drawn * real
        elif name == "kernel":
            value = math.sqrt(2 / math.prod((*leaf.shape[:-2], leaf.shape[-1]))) * drawn
        elif name in ("scale", "var"):
            value = 1 + 0.2 * drawn
        else:
            value = 0.1 * drawn
        return value.astype(dtype)

    variables = {"params": state.params, "batch_stats": state.batch_stats}
    return jax.tree_util.tree_map_with_path(draw, variables)


def moved_by_rounding(variables: Mapping[str, Any], seed: int) -> Mapping[str, Any]:
    """Move every value at random to one of its two neighbouring floats; 0, as in padding, stays.

    >>> moved_by_rounding({"scale": np.array([1.0, 0.0])}, seed=0)["scale"].tolist()
    [1.0000000000000002, 0.0]
    """
    rng = np.random.default_rng(seed)

    def move(leaf: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        towards = np.where(rng.random(leaf.shape) < 0.5, -np.inf, np.inf).astype(leaf.dtype)
        return np.where(leaf == 0, leaf, np.nextafter(leaf, towards))

    return jax.tree.map(move, variables)


def draw_batch(seed: int) -> dict[str, np.ndarray]:
    """Eight 32x16 images of four identities: one without a pose, one lacking a part.

    A part of a third image is half visible.
    """
    noise = Noise(seed)
    part_maps, visibility = noise.uniform(8, 4, 2, 8), np.ones((8, 8))
    part_maps[0], visibility[0] = 0, 0
    part_maps[3, :, :, 2], visibility[3, 2] = 0, 0
    visibility[4, 5] = 0.5
    return {
        "images": noise(8, 32, 16, 3),
        "labels": np.repeat(np.arange(4, dtype=np.int32), 2),
        "part_maps": part_maps,
        "visibility": visibility,
    }
