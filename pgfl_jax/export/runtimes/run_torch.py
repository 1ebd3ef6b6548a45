"""PyTorch, by the ``model.py`` beside the weights, on the CPU."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

PACKAGES = ("numpy", "torch")


def load(model: str) -> Callable[[np.ndarray], np.ndarray]:
    """The function of a weights' file: a batch as it takes them to (N, D) float32 rows."""
    folder = Path(model).parent
    spec: Any = importlib.util.spec_from_file_location("model", folder / "model.py")
    source = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(source)

    import torch

    network = source.load(folder)
    return lambda pictures: network(torch.tensor(pictures)).numpy()
