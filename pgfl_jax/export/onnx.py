"""ONNX: for ONNX Runtime, OpenVINO, TensorRT, DeepStream and OpenCV's dnn."""

from pathlib import Path

import numpy as np

from pgfl_jax.embedder import Embedder
from pgfl_jax.export.contract import Contract, batch_of, embed_pictures


def write_onnx(embedder: Embedder, contract: Contract, folder: Path) -> None:
    """Write ``model.onnx``, with its weights, its input ``images`` and output ``embeddings``.

    ``model_float16.onnx`` is a copy of half the size.

    Raises:
        ExportError: the network has an operation that has no translation.
        onnx.checker.ValidationError: the graph is not valid: a bug here.
    """
    import onnx

    from pgfl_jax.export.jaxpr_to_onnx import convert
    from pgfl_jax.export.quantise import halve_onnx

    embed = embed_pictures(embedder, contract)
    model = convert(embed, batch_of(embedder, contract))
    # With the shapes of all tensors, anyone can count its operations.
    model = onnx.shape_inference.infer_shapes(
        model, check_type=True, strict_mode=True, data_prop=True
    )
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, folder / "model.onnx")
    halve_onnx(folder / "model.onnx", folder / "model_float16.onnx")


def write_onnx_int8(embedder: Embedder, contract: Contract, folder: Path, rows: np.ndarray) -> None:
    """Add ``model_int8.onnx``, from ``model.onnx`` beside it, calibrated on training pictures."""
    from pgfl_jax.export.quantise import quantise_onnx

    quantise_onnx(folder / "model.onnx", folder / "model_int8.onnx", rows)
