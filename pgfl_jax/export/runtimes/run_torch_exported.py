"""Embeds pictures by an artifact's ``model.pt2``, with PyTorch."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch


def load(folder: str) -> Callable[[np.ndarray], np.ndarray]:
    """The function of an artifact from a batch of pictures to (N, D) float32 embeddings."""
    network = torch.export.load(Path(folder) / "model.pt2").module()

    def embed(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.tensor(images)).numpy()

    return embed


if __name__ == "__main__":
    from _main import main

    main(load, torch)
