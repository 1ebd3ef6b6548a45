"""ONNX Runtime, on the CPU."""

from collections.abc import Callable

import numpy as np

PACKAGES = ("numpy", "onnxruntime")


def load(model: str) -> Callable[[np.ndarray], np.ndarray]:
    """The function of a model file: a batch as it takes them to (N, D) float32 rows."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return lambda pictures: session.run(["embeddings"], {"images": pictures})[0]
