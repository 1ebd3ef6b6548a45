"""Embed the images of a split with a trained network."""

from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from pgfl_jax.config import Embedding
from pgfl_jax.distributed.sharding import batch_sharding, replicated, shard_batch
from pgfl_jax.models import PGFL, main_branch, unit_length
from pgfl_jax.retrieval.protocols import EvaluationError, EvaluationSplit
from pgfl_jax.train_state import TrainState

EmbedFn = Callable[[TrainState, Mapping[str, Array]], dict[str, Array]]


def make_embed(model: PGFL, mesh: Mesh, names: Sequence[Embedding]) -> EmbedFn:
    """Compile the function from a batch to retrieval embeddings.

    Args:
        model: the network.
        mesh: the devices; the batch is split over them.
        names: ``main`` (MB: from images alone), or teachers too, which need the batch's poses.

    Returns:
        ``embed(state, batch)``, a dict from each name to (B, D) unit-length embeddings.
    """

    def embed(state: TrainState, batch: Mapping[str, Array]) -> dict[str, Array]:
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        if set(names) == {"main"}:
            outputs = model.apply(main_branch(variables), batch["images"], train=False)
        else:
            pose = batch["part_maps"], batch["visibility"]
            outputs = model.apply(variables, batch["images"], *pose, train=False)
        return {name: unit_length(getattr(outputs, name).neck) for name in names}

    # The state stays where it is. The results are gathered, so that every process has all rows.
    shardings = None, batch_sharding(mesh)
    return jax.jit(embed, in_shardings=shardings, out_shardings=replicated(mesh))


def embed_split(
    embed: EmbedFn, state: TrainState, split: EvaluationSplit, mesh: Mesh
) -> dict[str, Float[np.ndarray, "images channels"]]:
    """Embed every image of a split: a dict from each embedding's name to (N, D).

    Raises:
        EvaluationError: an embedding is NaN or infinite; names the first images.
    """
    batches = []
    for batch in split.batches():
        inputs = {name: batch[name] for name in ("images", "part_maps", "visibility")}
        batches.append(jax.device_get(embed(state, shard_batch(inputs, mesh))))
    # The padding rows of the last batch come after all images.
    count = len(split.filenames)
    embeddings = jax.tree.map(lambda *rows: np.concatenate(rows)[:count], *batches)
    for name, rows in embeddings.items():
        broken = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if broken.size:
            first = ", ".join(split.filenames[broken[:3]])
            raise EvaluationError(
                f"{broken.size} embeddings ({name}) are not finite, the first are of {first}"
            )
    return embeddings
