"""``preprocessing.json``, and the names of model files."""

from typing import Any

from pgfl_jax.embedder import Embedder
from pgfl_jax.export.contract import CONTRACTS

LARGEST_LOSS = 0.01
"""The loss of mAP that a model in less precision may have without its name saying so."""


def preprocessing(embedder: Embedder, name: str) -> dict[str, Any]:
    """The content of ``preprocessing.json``: from a picture file to an embedding, step by step.

    Args:
        embedder: of the run.
        name: of the contract.
    """
    data, contract = embedder.config.data, CONTRACTS[name]
    return {
        "contract": name,
        "size": {"height": data.height, "width": data.width},
        "channel_order": "RGB",
        "interpolation": "bilinear with antialiasing (Pillow's BILINEAR)",
        "mean": list(data.mean),
        "std": list(data.std),
        "by_the_caller": ["decode", "resize", *(["normalise"] if contract.normalised else [])],
        "in_the_graph": [*([] if contract.normalised else ["normalise"]), "embed", "unit length"],
        "normalise": "(x / 255 - mean) / std per channel, for x in [0, 255]",
        "input": {
            "name": "images",
            "dtype": contract.dtype,
            "layout": "NCHW" if contract.channels_first else "NHWC",
            "shape": ["batch", *contract.row_shape(data.height, data.width)],
            "normalised_inside": not contract.normalised,
        },
        "output": {
            "name": "embeddings",
            "dtype": "float32",
            "shape": ["batch", embedder.dim],
            "unit_length": True,
        },
    }


def name_with_loss(file: str, loss: float) -> str:
    """The name of a model file that loses ``loss`` of mAP, in [0, 1], against the checkpoint.

    >>> name_with_loss("model_int8.onnx", 0.004), name_with_loss("model_int8.onnx", 0.0234)
    ('model_int8.onnx', 'model_int8_loses_2.3_points.onnx')
    """
    if loss <= LARGEST_LOSS:
        return file
    stem, dot, suffix = file.rpartition(".")
    return f"{stem}_loses_{100 * loss:.1f}_points{dot}{suffix}"
