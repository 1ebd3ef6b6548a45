"""The device mesh, and where arrays live on it."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "model")
Tree = TypeVar("Tree")


def make_mesh(devices: Sequence[jax.Device] | None = None, *, model: int = 1) -> Mesh:
    """A mesh of axes ``data`` and ``model`` over ``devices`` (default: those of all processes).

    The devices that share the classifiers, ``model`` of them, stand side by side, within a process
    where it has as many: they exchange the most.
    """
    devices = jax.devices() if devices is None else devices
    # Not jax.make_mesh, which may reorder the devices: rows of a batch must stay in the order of
    # the processes that they come from.
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.asarray(ordered).reshape(-1, model), AXES, axis_types=(AxisType.Auto,) * 2)


def batch_sharding(mesh: Mesh, parts: int = 1) -> NamedSharding:
    """The rows split over all devices; with several parts, those of each part, on the next axis."""
    return NamedSharding(mesh, PartitionSpec(*(() if parts == 1 else (None,)), AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(state: Tree, mesh: Mesh) -> Tree:
    """Where a state lives: classifiers split by identity over ``model``, all else replicated.

    Args:
        state: arrays or their abstract shapes; what the optimizer keeps of a classifier is found
            by the same name.
        mesh: the devices.

    Returns:
        The same tree, of shardings.
    """

    def place(path: tuple, leaf: jax.Array | jax.ShapeDtypeStruct) -> NamedSharding:
        classifier = any(str(getattr(key, "key", "")).endswith("_classifier") for key in path)
        split = classifier and len(leaf.shape) == 2
        return NamedSharding(mesh, PartitionSpec(None, "model") if split else PartitionSpec())

    return jax.tree_util.tree_map_with_path(place, state)


def constrain(values: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
    """Tell the compiler how an intermediate result is split; nothing outside a mesh of ours."""
    if not set(AXES) <= set(jax.sharding.get_abstract_mesh().axis_names):
        return values
    return jax.lax.with_sharding_constraint(values, PartitionSpec(*axes))


def shard_batch(
    batch: Mapping[str, np.ndarray], mesh: Mesh, parts: int = 1
) -> dict[str, jax.Array]:
    """Make global arrays of this process's slice of a batch.

    Args:
        batch: this process's rows; with several parts, its rows of the first, the second …
        mesh: the devices.
        parts: if above 1, the arrays get a leading axis over the parts that the step takes one
            after the other, and each part is split over all devices.
    """
    sharding = batch_sharding(mesh, parts)
    if parts > 1:
        batch = {name: rows.reshape(parts, -1, *rows.shape[1:]) for name, rows in batch.items()}
    return {
        name: jax.make_array_from_process_local_data(sharding, value)
        for name, value in batch.items()
    }
