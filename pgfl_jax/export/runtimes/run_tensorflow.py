"""TensorFlow, on the CPU, from a SavedModel."""

from collections.abc import Callable

import numpy as np

PACKAGES = ("numpy", "tensorflow")


def load(model: str) -> Callable[[np.ndarray], np.ndarray]:
    """The function of a SavedModel: a batch as it takes them to (N, D) float32 rows."""
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    # The function keeps no reference to its parameters, so it must not outlive what it is part of.
    loaded = tf.saved_model.load(model)
    serve = loaded.signatures["serving_default"]
    return lambda pictures, loaded=loaded: serve(images=tf.constant(pictures))["embeddings"].numpy()
