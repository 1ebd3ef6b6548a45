"""The stem's max-pooling, with a backward pass of its own."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, UInt8

Image = Float[Array, "batch height width channels"]
Half = Float[Array, "batch half_height half_width channels"]


@jax.custom_vjp
def max_pool(x: Image) -> Half:
    """The maximum of each 3x3 window, in steps of 2, over maps of even height and width.

    The gradient goes to the window's first maximum in reading order, as in PyTorch. XLA's own
    backward pass sorts windows into the map; here every pixel looks at the at most four windows
    that contain it.
    """
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


def _forward(x: Image) -> tuple[Half, UInt8[Array, "..."]]:
    """The maxima, and the place of each in its window, 0 to 8."""
    batch, height, width, channels = x.shape
    lowest = jnp.array(-jnp.inf, x.dtype)
    padded = jax.lax.pad(x, lowest, ((0, 0, 0), (1, 1, 0), (1, 1, 0), (0, 0, 0)))
    last = height - 1, width - 1

    def cell(row: int, column: int) -> Half:
        """What one cell of every window sees."""
        stop = batch, row + last[0], column + last[1], channels
        return jax.lax.slice(padded, (0, row, column, 0), stop, (1, 2, 2, 1))

    maximum = cell(0, 0)
    place = jnp.zeros(maximum.shape, jnp.uint8)
    for offset in range(1, 9):
        value = cell(*divmod(offset, 3))
        place = jnp.where(value > maximum, jnp.uint8(offset), place)
        maximum = jnp.maximum(value, maximum)
    return maximum, place


def _backward(place: UInt8[Array, "..."], gradient: Half) -> tuple[Image]:
    batch, height, width, channels = gradient.shape
    # The row in its window of an even and an odd row, for the window that starts above it and the
    # next one; an even row is in one window only.
    rows = ((1, 2), (9, 0))
    total = jnp.zeros((batch, height, 2, width, 2, channels), gradient.dtype)
    for below in (0, 1):
        for right in (0, 1):
            edge = ((0, 0, 0), (-below, below, 0), (-right, right, 0), (0, 0, 0))
            value = jax.lax.pad(gradient, jnp.zeros((), gradient.dtype), edge)
            at = jax.lax.pad(place, jnp.uint8(255), edge)
            wanted = jnp.uint8(
                [[3 * row + column for column in rows[right]] for row in rows[below]]
            )
            hit = at[:, :, None, :, None] == wanted[None, None, :, None, :, None]
            total = total + jnp.where(hit, value[:, :, None, :, None], 0)
    return (total.reshape(batch, 2 * height, 2 * width, channels),)


max_pool.defvjp(_forward, _backward)
