"""Digests of a run's training images, so that a later evaluation recognises them."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from pgfl_jax.config import ConfigError
from pgfl_jax.report.writers import replace_bytes

TRAINING_IMAGES = "training_images.npy"
_BYTES = 32  # of a SHA-256


def write_training_images(
    workdir: Path, image_sha256: Shaped[np.ndarray, " images"] | Sequence[str]
) -> None:
    """Write ``training_images.npy``: the sorted digests, (images, 32) uint8, each once.

    Args:
        workdir: the run's folder.
        image_sha256: hex digests of the training images.
    """
    digests = sorted(set(map(str, image_sha256)))
    rows = np.frombuffer(bytes.fromhex("".join(digests)), np.uint8).reshape(-1, _BYTES)
    content = io.BytesIO()
    np.save(content, rows)
    replace_bytes(workdir / TRAINING_IMAGES, content.getvalue())


def read_training_images(workdir: Path) -> list[str] | None:
    """The hex digests of a run's training images; None if its version did not keep them.

    Raises:
        ConfigError: the file is damaged.
    """
    path = workdir / TRAINING_IMAGES
    if not path.exists():
        return None
    try:
        rows = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
        if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != _BYTES:
            raise ValueError("not digests")
    except (EOFError, ValueError) as error:
        raise ConfigError(f"{path}: damaged; put a copy back, or remove it") from error
    return [row.tobytes().hex() for row in rows]
