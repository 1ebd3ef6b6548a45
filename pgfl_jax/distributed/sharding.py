"""The device mesh, and where arrays live on it."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "model")


def make_mesh(devices: Sequence[jax.Device] | None = None, *, model: int = 1) -> Mesh:
    """A mesh of axes ``data`` and ``model`` over ``devices`` (default: those of all processes).

    The ``model`` devices that share the classifiers are neighbours, in one process if it has that
    many, because they exchange the most data.
    """
    devices = jax.devices() if devices is None else devices
    # Not jax.make_mesh, which may reorder the devices: the rows of a batch must stay in the order
    # of the processes that read them.
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.asarray(ordered).reshape(-1, model), AXES, axis_types=(AxisType.Auto,) * 2)


def batch_sharding(mesh: Mesh, parts: int = 1) -> NamedSharding:
    """Rows split over all devices; with several parts, the rows of each part, on the next axis."""
    return NamedSharding(mesh, PartitionSpec(*(() if parts == 1 else (None,)), AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def constrain(values: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
    """Fix how an intermediate result is split; does nothing outside a mesh of :data:`AXES`."""
    if not set(AXES) <= set(jax.sharding.get_abstract_mesh().axis_names):
        return values
    return jax.lax.with_sharding_constraint(values, PartitionSpec(*axes))


def shard_batch(
    batch: Mapping[str, np.ndarray], mesh: Mesh, parts: int = 1
) -> dict[str, jax.Array]:
    """Make global arrays from this process's slice of a batch.

    Args:
        batch: this process's rows, ordered by part.
        mesh: the devices.
        parts: if above 1, the arrays get a leading axis over the parts, which the step takes one
            after the other. Each part is split over all devices.
    """
    sharding = batch_sharding(mesh, parts)
    if parts > 1:
        batch = {name: rows.reshape(parts, -1, *rows.shape[1:]) for name, rows in batch.items()}
    return {
        name: jax.make_array_from_process_local_data(sharding, value)
        for name, value in batch.items()
    }
