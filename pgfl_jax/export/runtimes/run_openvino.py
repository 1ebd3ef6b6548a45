"""OpenVINO, on the CPU."""

from collections.abc import Callable

import numpy as np

PACKAGES = ("numpy", "openvino")


def load(model: str) -> Callable[[np.ndarray], np.ndarray]:
    """The function of a model file: a batch as it takes them to (N, D) float32 rows."""
    import openvino

    # By default it computes in bfloat16 where the processor has it.
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda pictures: compiled({"images": pictures})["embeddings"]
