"""TensorFlow's SavedModel: JAX's own program, with its parameters as variables beside it."""

from pathlib import Path

from pgfl_jax.embedder import Embedder
from pgfl_jax.export.contract import (
    Contract,
    batch_of,
    embed_function,
    named_variables,
    no_source_paths,
)
from pgfl_jax.export.stablehlo import PLATFORMS


def write_saved_model(embedder: Embedder, contract: Contract, folder: Path) -> None:
    """Write ``folder/saved_model``, which plain TensorFlow loads and TensorFlow Serving serves.

    Its signature ``serving_default`` takes ``images`` (N, …) as the contract says, for any N, and
    returns ``embeddings`` (N, D) float32. The program is StableHLO for CPUs, GPUs and TPUs.

    Args:
        embedder: of the run.
        contract: the input.
        folder: where to write; it exists.
    """
    import tensorflow as tf
    from jax.experimental import jax2tf

    images = batch_of(embedder, contract)
    program = jax2tf.convert(
        embed_function(embedder, contract),
        polymorphic_shapes=[None, "(batch, ...)"],
        with_gradient=False,
        native_serialization_platforms=PLATFORMS,
    )
    module = tf.Module()
    module.parameters = {
        name: tf.Variable(value, trainable=False, name=name)
        for name, value in named_variables(embedder).items()
    }
    row = tf.TensorSpec([None, *images.shape[1:]], images.dtype, name="images")

    @tf.function(autograph=False, input_signature=[row])
    def serve(images):
        return {"embeddings": program(module.parameters, images)}

    with no_source_paths():
        tf.saved_model.save(
            module, str(folder / "saved_model"), signatures={"serving_default": serve}
        )
