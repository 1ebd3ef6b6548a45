"""What the main branch's feature maps look like: energies and predicted maps of some images."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pgfl_jax.config import NUM_PARTS, DataConfig
from pgfl_jax.distributed.devices import compiler_options
from pgfl_jax.distributed.sharding import make_mesh
from pgfl_jax.embedder import Embedder
from pgfl_jax.models import PGFL
from pgfl_jax.network_input import network_input
from pgfl_jax.report.attention import pooled_energy
from pgfl_jax.retrieval.protocols import Batch, EvaluationSplit

_BATCH = 50


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureMaps:
    """The maps of N images with G groups of channels, on the grid of the features.

    Attributes:
        energy: (N, h, w, G) as :func:`pgfl_jax.report.attention.pooled_energy` defines it.
        predicted: (N, h, w, P) in [0, 1], one per group or the foreground's; None if the branch
            predicts none.
        part_maps: (N, h, w, G) of the pose in [0, 1]; None if poses were not read.
        visibility: (N, G) of the pose in [0, 1]; None likewise.
    """

    energy: Float[np.ndarray, "images height width parts"]
    predicted: Float[np.ndarray, "images height width maps"] | None = None
    part_maps: Float[np.ndarray, "images height width parts"] | None = None
    visibility: Float[np.ndarray, "images parts"] | None = None


def feature_maps(
    embedder: Embedder, split: EvaluationSplit, rows: Int[np.ndarray, " images"]
) -> FeatureMaps:
    """The maps of some images of a split.

    Args:
        embedder: the main branch.
        split: with part maps in its batches, if poses were read.
        rows: (N,) the images, ascending.
    """
    found: list[dict[str, np.ndarray]] = []
    for batch, count in _rebatched(split, rows):
        maps = vars(batch_maps(embedder, batch))
        found.append({name: values[:count] for name, values in maps.items() if values is not None})
    whole = {name: np.concatenate([maps[name] for maps in found]) for name in found[0]}
    return FeatureMaps(**whole)


def batch_maps(embedder: Embedder, batch: Batch, *, quick: bool = False) -> FeatureMaps:
    """The maps of a batch of images; one program is compiled for each size of batch.

    Args:
        embedder: the main branch.
        batch: ``images``, and ``part_maps`` and ``visibility`` if poses were read.
        quick: compile in less than half the time, for few images.
    """
    found = _compiled(quick)(
        embedder.model, embedder.config.data, embedder.variables, batch["images"]
    )
    energy, predicted = jax.device_get(found)
    energy = pooled_energy(energy, predicted)
    return FeatureMaps(energy, predicted, batch.get("part_maps"), batch.get("visibility"))


@functools.cache
def _compiled(quick: bool) -> Callable[..., Any]:
    """The jitted :func:`_maps`; on CPUs compiling takes most of the time of a small batch."""
    options = compiler_options(make_mesh(jax.local_devices()[:1]))
    if quick and jax.default_backend() == "cpu":
        options["xla_backend_optimization_level"] = 0
    return jax.jit(_maps, static_argnums=(0, 1), compiler_options=options)


def _maps(
    model: PGFL, data: DataConfig, variables: Any, images: Array
) -> tuple[
    Float[Array, "batch height width parts"], Float[Array, "batch height width maps"] | None
]:
    """The energy of each group, and the predicted maps."""
    outputs: Any = model.apply(variables, network_input({"images": images}, data), train=False)
    features = outputs.features if outputs.main_features is None else outputs.main_features
    features = features.astype(jnp.float32)
    grouped = features.reshape(*features.shape[:3], NUM_PARTS, -1)
    logits = outputs.map_logits
    return jnp.sum(jnp.square(grouped), axis=-1), None if logits is None else jax.nn.sigmoid(logits)


def _rebatched(
    split: EvaluationSplit, rows: Int[np.ndarray, " images"]
) -> Iterator[tuple[Batch, int]]:
    """The chosen images in batches of one size, and how many of each are not padding."""
    waiting: list[Batch] = []
    start, size = 0, min(_BATCH, len(rows))
    for batch in split.batches():
        inside = rows[(rows >= start) & (rows < start + len(batch["images"]))] - start
        start += len(batch["images"])
        names = [name for name in ("images", "part_maps", "visibility") if name in batch]
        waiting += [{name: batch[name][row] for name in names} for row in inside]
        while len(waiting) >= size:
            yield _stacked(waiting[:size]), size
            waiting = waiting[size:]
    if waiting:
        yield _stacked([*waiting, *[waiting[-1]] * (size - len(waiting))]), len(waiting)


def _stacked(images: Sequence[Batch]) -> Batch:
    return {name: np.stack([image[name] for image in images]) for name in images[0]}
