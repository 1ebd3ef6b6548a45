"""ONNX: for ONNX Runtime, OpenVINO, TensorRT, DeepStream and OpenCV's dnn."""

import functools
from pathlib import Path

from pgfl_jax.embedder import Embedder
from pgfl_jax.export.contract import Contract, batch_of, embed_function, named_variables


def write_onnx(embedder: Embedder, contract: Contract, folder: Path) -> None:
    """Write ``model.onnx``, with its weights, its input ``images`` and output ``embeddings``.

    Raises:
        ExportError: the network has an operation that has no translation.
        onnx.checker.ValidationError: the graph is not valid: a bug here.
    """
    import onnx

    from pgfl_jax.export.jaxpr_to_onnx import convert

    embed = functools.partial(embed_function(embedder, contract), named_variables(embedder))
    model = convert(embed, batch_of(embedder, contract))
    # With the shapes of all tensors, anyone can count its operations.
    model = onnx.shape_inference.infer_shapes(
        model, check_type=True, strict_mode=True, data_prop=True
    )
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, folder / "model.onnx")
