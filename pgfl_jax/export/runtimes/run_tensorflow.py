"""TensorFlow, on the CPU, from a SavedModel."""

import sys
from collections.abc import Callable

import numpy as np

PACKAGES = ("numpy", "tensorflow")


def load(model: str) -> Callable[[np.ndarray], np.ndarray]:
    """The function of a SavedModel: a batch as it takes them to (N, D) float32 rows."""
    # TensorFlow imports JAX where it is installed; the model must run without it.
    sys.modules["jax"] = None  # type: ignore[assignment]
    import tensorflow as tf

    del sys.modules["jax"]
    # Its signature alone would not keep the model's parameters alive.
    loaded = tf.saved_model.load(model)

    def embed(pictures: np.ndarray) -> np.ndarray:
        return loaded.signatures["serving_default"](images=pictures)["embeddings"].numpy()

    return embed
