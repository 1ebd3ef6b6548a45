"""Convolutions without bias. The form follows the kind of device; the result is the same."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from pgfl_jax.models import winograd

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
    - 3x3, on CPUs and where it pays: Winograd's form (:mod:`pgfl_jax.models.winograd`) if the
      stride is 1, else the gradient of the kernel as nine products.
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
    if kernel.shape[0] == 3:
        return _three(x, kernel, stride)
    return _plain(x, kernel, stride)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _three(x: Features, kernel: Weights, stride: int) -> Output:
    convolution = functools.partial(_plain, stride=stride)
    if stride == 1 and _is_large(x, kernel):
        return jax.lax.platform_dependent(x, kernel, cpu=winograd.convolution, default=convolution)
    return convolution(x, kernel)


def _three_forward(x: Features, kernel: Weights, stride: int) -> tuple[Output, tuple]:
    return _three(x, kernel, stride), (x, kernel)


def _three_backward(stride: int, saved: tuple, gradient: Output) -> tuple[Features, Weights]:
    convolution = functools.partial(_plain, stride=stride)

    def plain(x: Features, kernel: Weights, gradient: Output) -> tuple[Features, Weights]:
        return jax.vjp(convolution, x, kernel)[1](gradient)

    def on_cpu(x: Features, kernel: Weights, gradient: Output) -> tuple[Features, Weights]:
        if stride == 1:
            return winograd.input_gradient(kernel, gradient), winograd.kernel_gradient(x, gradient)
        (to_input,) = jax.vjp(lambda x: convolution(x, kernel), x)[1](gradient)
        return to_input, _kernel_gradient(x, gradient, stride)

    x, kernel = saved
    if _is_large(x, kernel):
        return jax.lax.platform_dependent(x, kernel, gradient, cpu=on_cpu, default=plain)
    return plain(x, kernel, gradient)


_three.defvjp(_three_forward, _three_backward)


def _is_large(x: Features, kernel: Weights) -> bool:
    """Whether a 3x3 convolution is worth being taken apart into products on CPUs.

    That takes longer to compile, and Winograd's needs a few hundred tiles of 2x2 pixels to make up
    for transforming the kernel. In 16 bits its sums would lose digits.
    """
    batch, height, width, channels = x.shape
    if not isinstance(batch, int) or height % 2 or width % 2 or jnp.finfo(x.dtype).bits < 32:
        return False
    tiles = batch * height * width // 4
    return tiles >= 256 and tiles * channels * kernel.shape[-1] >= 2**22


def _kernel_gradient(x: Features, gradient: Output, stride: int) -> Weights:
    """Of a 3x3 convolution's kernel: a product for each of its nine places."""
    _, height, width, channels = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = gradient.reshape(-1, gradient.shape[-1])

    def place(i: int, j: int) -> Array:
        seen = padded[:, i : i + height : stride, j : j + width : stride]
        return seen.reshape(-1, channels).T @ rows

    return jnp.stack([jnp.stack([place(i, j) for j in range(3)]) for i in range(3)])


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
