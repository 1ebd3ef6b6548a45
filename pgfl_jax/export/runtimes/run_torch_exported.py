"""PyTorch, by a program of ``torch.export``, on the CPU."""

from collections.abc import Callable

import numpy as np

PACKAGES = ("numpy", "torch")


def load(model: str) -> Callable[[np.ndarray], np.ndarray]:
    """The function of a program: a batch as it takes them to (N, D) float32 rows."""
    import torch

    network = torch.export.load(model).module()
    return lambda pictures: network(torch.tensor(pictures)).numpy()
