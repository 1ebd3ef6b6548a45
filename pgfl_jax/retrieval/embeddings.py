"""Embed the images of a split with a trained network."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from pgfl_jax.config import Distance, Embedding
from pgfl_jax.distributed.devices import compiler_options
from pgfl_jax.distributed.sharding import batch_sharding, replicated, shard_batch
from pgfl_jax.experiment import Experiment
from pgfl_jax.models import main_branch, unit_length
from pgfl_jax.models.branches import PART_FLIP, pose_mask
from pgfl_jax.network_input import network_input
from pgfl_jax.retrieval.protocols import EvaluationError, EvaluationSplit
from pgfl_jax.train_state import TrainState

_INPUTS = "images", "part_maps", "visibility"  # the latter two where a teacher is asked for

BRANCHES = "main", "foreground", "parts"  # in the order in which they are joined

# Distances in float32 are known to some 1e-7 of the squared length.
_LEAST_SPREAD = 1e-6

EmbedFn = Callable[[TrainState, Mapping[str, Array]], tuple[dict[str, Array], Array]]


def make_embed(experiment: Experiment, mesh: Mesh, names: Sequence[Embedding]) -> EmbedFn:
    """Compile the function from a batch to retrieval embeddings.

    Args:
        experiment: the network, and how its images are normalised.
        mesh: the devices; the batch is split over them.
        names: ``main`` (MB: from images alone), or teachers too, which need the batch's poses.

    Returns:
        ``embed(state, batch)``: a dict from each name to (B, D) embeddings, of unit length unless
        ``config.eval.distance`` is Euclidean, and (B,) which images have a usable pose (all of
        them if no teacher is asked for).
    """
    options, model = experiment.config.eval, experiment.model
    scaled = unit_length if options.distance == "cosine" else lambda neck: neck

    def embed(state: TrainState, batch: Mapping[str, Array]) -> tuple[dict[str, Array], Array]:
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        images = network_input(batch, experiment.config.data)
        pose: tuple[Array, ...] = ()
        usable = jnp.ones(len(images), bool)
        if set(names) == {"main"}:
            variables = main_branch(variables)
        else:
            pose = batch["part_maps"], batch["visibility"]
            usable = pose_mask(batch["visibility"]) > 0
        found = _necks(model.apply(variables, images, *pose, train=False))
        if options.flip:
            mirrored = model.apply(variables, *_mirrored(images, *pose), train=False)
            found = jax.tree.map(lambda one, other: (one + other) / 2, found, _necks(mirrored))
        rows = {name: scaled(neck) for name, neck in found.items()}
        if "joined" in names:
            rows["joined"] = scaled(jnp.concatenate([rows[name] for name in BRANCHES], axis=-1))
        return {name: rows[name] for name in names}, usable

    # The state stays where it is. The results are gathered, so that every process has all rows.
    shardings = None, batch_sharding(mesh)
    return jax.jit(
        embed,
        in_shardings=shardings,
        out_shardings=replicated(mesh),
        compiler_options=compiler_options(mesh),
    )


def _necks(outputs: Any) -> dict[str, Array]:
    """(B, D) output of each branch's BNNeck, from the network's outputs."""
    branches = {name: getattr(outputs, name) for name in BRANCHES}
    return {name: branch.neck for name, branch in branches.items() if branch is not None}


def _mirrored(images: Array, *pose: Array) -> tuple[Array, ...]:
    """Images, and their part maps and visibility if given, with left and right exchanged."""
    if not pose:
        return (images[:, :, ::-1],)
    part_maps, visibility = pose
    parts = jnp.array(PART_FLIP)
    return images[:, :, ::-1], part_maps[:, :, ::-1, parts], visibility[:, parts]


@dataclasses.dataclass(frozen=True, eq=False)
class Embedded:
    """The embeddings of N images.

    Attributes:
        rows: (N, D) by the embedding's name; meaningless for a teacher's rows without a pose.
        has_pose: (N,) which images have a pose that a teacher can use.
    """

    rows: Mapping[str, Float[np.ndarray, "images channels"]]
    has_pose: Bool[np.ndarray, " images"]

    def usable(self, name: str) -> Bool[np.ndarray, " images"]:
        """Which rows of an embedding mean something: all of the main branch's."""
        return np.ones_like(self.has_pose) if name == "main" else self.has_pose


def embed_split(
    embed: EmbedFn,
    state: TrainState,
    split: EvaluationSplit,
    mesh: Mesh,
    *,
    distance: Distance = "cosine",
) -> Embedded:
    """Embed every image of a split, into rows of unit length for the cosine distance.

    Raises:
        EvaluationError: an embedding is not finite or has no length, and names the first images;
            or all of them are equal, exactly or to rounding. The ranking would be that of the
            files, or of rounding errors.
    """
    batches = []
    for batch in split.batches():
        inputs = {name: batch[name] for name in _INPUTS if name in batch}
        batches.append(jax.device_get(embed(state, shard_batch(inputs, mesh))))
    # The padding rows of the last batch come after all images.
    count = len(split.filenames)
    rows, has_pose = jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *batches)
    embedded = Embedded(rows, has_pose)
    for name in rows:
        usable = embedded.usable(name)
        _check(name, rows[name][usable], split.filenames[usable], distance)
    return embedded


def _check(
    name: str,
    rows: Float[np.ndarray, "images channels"],
    filenames: np.ndarray,
    distance: Distance,
) -> None:
    length = np.linalg.norm(rows, axis=1)
    fine = np.abs(length - 1) < 0.01 if distance == "cosine" else (length > 0) & (length < np.inf)
    broken = np.flatnonzero(~fine)  # NaN, too
    if broken.size:
        raise EvaluationError(
            f"{broken.size} of {len(rows)} embeddings ({name}) are zero or not finite, the first "
            f"are of {', '.join(filenames[broken[:3]])}; the network's weights are broken"
        )
    if len(rows) > 1 and _spread(rows, length) < _LEAST_SPREAD:
        words = "are equal" if (rows == rows[0]).all() else "are equal but for rounding"
        raise EvaluationError(
            f"all {len(rows)} embeddings ({name}) {words}, from {filenames[0]} to "
            f"{filenames[-1]}; the network's weights are broken, or all images are the same"
        )


def _spread(
    rows: Float[np.ndarray, "images channels"], length: Float[np.ndarray, " images"]
) -> float:
    """The mean squared distance from the centre, over the mean squared length.

    For rows of unit length, this is the mean of 1 − cosine over all pairs.
    """
    centre = rows.mean(axis=0, dtype=np.float64)
    return float(1 - centre @ centre / np.square(length, dtype=np.float64).mean())
