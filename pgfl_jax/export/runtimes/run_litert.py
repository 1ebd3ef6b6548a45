"""LiteRT's interpreter, on the CPU."""

import os
from collections.abc import Callable

import numpy as np

PACKAGES = ("numpy", "ai_edge_litert")


def load(model: str) -> Callable[[np.ndarray], np.ndarray]:
    """The function of a model file: a batch as it takes them to (N, D) float32 rows."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=model, num_threads=os.cpu_count())
    (images,) = interpreter.get_input_details()
    (embeddings,) = interpreter.get_output_details()
    size = None

    def embed(pictures: np.ndarray) -> np.ndarray:
        nonlocal size
        if len(pictures) != size:
            interpreter.resize_tensor_input(images["index"], pictures.shape, strict=True)
            interpreter.allocate_tensors()
            size = len(pictures)
        interpreter.set_tensor(images["index"], pictures)
        interpreter.invoke()
        return interpreter.get_tensor(embeddings["index"])

    return embed
