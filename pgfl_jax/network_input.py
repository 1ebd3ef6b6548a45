"""What the devices do to a batch's images before the network sees them."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pgfl_jax.config import DataConfig
from pgfl_jax.preprocessing import normalise


@functools.partial(jax.jit, static_argnames="data")
def network_input(
    batch: Mapping[str, Any], data: DataConfig
) -> Float[Array, "batch height width 3"]:
    """The images of a batch: (x / 255 − mean) / std per channel, with erased rectangles.

    Such a rectangle is 0, the mean, or shows what an image of the next identity has there: row i of
    a batch of P·K is filled from row i + K, and the last identity from the first.

    Until then a batch stays uint8, a quarter of its size in float32.

    Args:
        batch: ``images`` (B, H, W, 3) uint8 and, if any of them have one, ``erased`` (B, 4) int32:
            top, left, bottom, right of a rectangle. Floating-point images are returned unchanged.
        data: mean, standard deviation, what erasing fills in, and K.
    """
    images = batch["images"]
    if images.dtype != np.uint8:
        return images
    values = normalise(images, data.mean, data.std)
    if "erased" not in batch:
        return values
    top, left, bottom, right = jnp.moveaxis(batch["erased"], -1, 0)[..., None]
    rows, columns = (jnp.arange(size, dtype=jnp.int32)[None] for size in images.shape[1:3])
    in_rows, in_columns = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
    erased = in_rows[:, :, None, None] & in_columns[:, None, :, None]
    fill = jnp.zeros((), values.dtype)
    if data.augment.erasing_fill == "image":
        fill = jnp.roll(values, -data.images_per_identity, axis=0)
    return jnp.where(erased, fill, values)
