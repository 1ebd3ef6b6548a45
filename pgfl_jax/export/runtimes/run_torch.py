"""Embeds pictures by an artifact's ``model.py`` and ``model.safetensors``, with PyTorch."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch


def load(folder: str) -> Callable[[np.ndarray], np.ndarray]:
    """The function of an artifact from a batch of pictures to (N, D) float32 embeddings."""
    spec = importlib.util.spec_from_file_location("model", Path(folder) / "model.py")
    model = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(model)
    network = model.load(folder)

    def embed(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.tensor(images)).numpy()

    return embed


if __name__ == "__main__":
    from _main import main

    main(load, torch)
