"""Convolutions without bias. The form follows the kind of device; the result is the same."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

Features = Float[Array, "batch height width channels"]
Output = Float[Array, "batch out_height out_width out_channels"]
Weights = Float[Array, "*window channels out_channels"]

_he_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Kernel(nn.Module):
    """The weights of a convolution: (I, O) if ``size`` is 1, else (size, size, I, O)."""

    features: int
    size: int

    @nn.compact
    def __call__(self, inputs: int) -> Weights:
        """The kernel for ``inputs`` channels."""
        if self.size == 1:
            return _Matrix((inputs, self.features), name="dense")()
        shape = self.size, self.size, inputs, self.features
        return jnp.asarray(self.param("kernel", _he_init, shape, jnp.float32))


class _Matrix(nn.Module):
    shape: tuple[int, int]

    @nn.compact
    def __call__(self) -> Weights:
        return jnp.asarray(self.param("kernel", _he_init, self.shape, jnp.float32))


def convolve(x: Features, kernel: Weights, stride: int = 1) -> Output:
    """The cross-correlation, padded on each side by half of the kernel as in PyTorch.

    - 1x1: a matrix product, several times faster than XLA's convolution on CPUs.
    - 7x7 with stride 2 on three channels, on NVIDIA GPUs: :func:`_by_blocks`.

    Args:
        x: (B, h, w, I).
        kernel: (I, O) or (k, k, I, O), with k odd.
        stride: of both axes.

    Returns:
        (B, ceil(h / stride), ceil(w / stride), O).
    """
    if kernel.ndim == 2:
        return skip(x, stride) @ kernel
    if kernel.shape[:3] == (7, 7, 3) and stride == 2:
        plain = functools.partial(_plain, stride=stride)
        return jax.lax.platform_dependent(x, kernel, cuda=_by_blocks, default=plain)
    return _plain(x, kernel, stride)


def skip(x: Features, stride: int) -> Output:
    """Every ``stride``-th row and column of (B, h, w, C)."""
    if stride == 1:
        return x
    # Without the barrier XLA's GPU compiler fuses the slice into the product, and aborts where a
    # basic block adds its shortcut ("subdim_size_accumulator", jaxlib 0.10.2 and 0.11.2).
    steps = 1, stride, stride, 1
    return jax.lax.optimization_barrier(jax.lax.slice(x, (0, 0, 0, 0), x.shape, steps))


def _plain(x: Features, kernel: Weights, stride: int) -> Output:
    padding = [(kernel.shape[0] // 2,) * 2] * 2
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _by_blocks(x: Features, kernel: Weights) -> Output:
    """7x7 with stride 2 on three channels, as 4x4 with stride 1 on sixteen.

    Matrix units take channels by eight. Blocks of 2x2 pixels become channels, with a fourth colour
    of 0. Output i reads the rows 2 (i - 2) + u, where u = 0 gets a kernel row of zeros. With
    u = 2 a + b that is row b of block i - 2 + a.
    """
    batch, height, width, _ = x.shape
    x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, 1)))
    x = x.reshape(batch, height // 2, 2, width // 2, 2, 4).swapaxes(2, 3)
    x = x.reshape(batch, height // 2, width // 2, 16)
    kernel = jnp.pad(kernel, ((1, 0), (1, 0), (0, 1), (0, 0)))
    kernel = kernel.reshape(4, 2, 4, 2, 4, -1).swapaxes(1, 2).reshape(4, 4, 16, -1)
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), [(2, 1), (2, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
