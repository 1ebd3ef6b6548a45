"""Convolutions without bias. The form follows the kind of device; the result is the same."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from pgfl_jax.models import winograd

Features = Float[Array, "batch height width channels"]
Output = Float[Array, "batch out_height out_width out_channels"]
Weights = Float[Array, "*window channels out_channels"]
Form = Callable[[Features, Weights], Output]
Gradients = Callable[[Features, Weights, Output], tuple[Features, Weights]]

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
    - 3x3 with stride 1, on CPUs if it is large: Winograd's form, :mod:`pgfl_jax.models.winograd`.
    - Others, on CPUs if they are large: the gradient of the kernel is a matrix product.
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
    return _square(x, kernel, stride)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _square(x: Features, kernel: Weights, stride: int) -> Output:
    plain = functools.partial(_plain, stride=stride)
    forms = {place: form for place, (form, _) in _forms(x, kernel, stride).items()}
    return jax.lax.platform_dependent(x, kernel, **forms, default=plain)


def _square_forward(x: Features, kernel: Weights, stride: int) -> tuple[Output, tuple]:
    return _square(x, kernel, stride), (x, kernel)


def _square_backward(stride: int, saved: tuple, gradient: Output) -> tuple[Features, Weights]:
    x, kernel = saved
    plain = _gradients_of(functools.partial(_plain, stride=stride))
    forms = {place: gradients for place, (_, gradients) in _forms(x, kernel, stride).items()}
    return jax.lax.platform_dependent(x, kernel, gradient, **forms, default=plain)


_square.defvjp(_square_forward, _square_backward)


def _forms(x: Features, kernel: Weights, stride: int) -> dict[str, tuple[Form, Gradients]]:
    """Kinds of device that take another form than the plain one: it, and its gradients."""
    forms: dict[str, tuple[Form, Gradients]] = {}
    if kernel.shape[:3] == (7, 7, 3) and stride == 2:
        forms["cuda"] = _by_blocks, _gradients_of(_by_blocks)
    if not _is_large(x, kernel):
        return forms
    if kernel.shape[0] == 3 and stride == 1:
        forms["cpu"] = winograd.convolution, winograd.gradients
        return forms
    plain = functools.partial(_plain, stride=stride)

    def gradients(x: Features, kernel: Weights, gradient: Output) -> tuple[Features, Weights]:
        (to_input,) = jax.vjp(lambda x: plain(x, kernel), x)[1](gradient)
        return to_input, _kernel_gradient(x, gradient, kernel.shape[0], stride)

    forms["cpu"] = plain, gradients
    return forms


def _gradients_of(form: Form) -> Gradients:
    return lambda x, kernel, gradient: jax.vjp(form, x, kernel)[1](gradient)


def _is_large(x: Features, kernel: Weights) -> bool:
    """Whether a convolution is worth being taken apart into products on CPUs.

    That takes longer to compile, and Winograd's form needs a few hundred tiles of 2x2 pixels to
    make up for transforming the kernel. In 16 bits its sums would lose digits.
    """
    batch, height, width, channels = x.shape
    if not isinstance(batch, int) or height % 2 or width % 2 or jnp.finfo(x.dtype).bits < 32:
        return False
    tiles = batch * height * width // 4
    return tiles >= 256 and tiles * channels * kernel.shape[-1] >= 2**22


def _kernel_gradient(x: Features, gradient: Output, size: int, stride: int) -> Weights:
    """Of the kernel: one product of all that its places see with the gradient of the output."""
    _, height, width, channels = x.shape
    border = size // 2
    padded = jnp.pad(x, ((0, 0), (border, border), (border, border), (0, 0)))
    ends = height + 2 * border - size + 1, width + 2 * border - size + 1
    seen = [
        padded[:, i : i + ends[0] : stride, j : j + ends[1] : stride]
        for i in range(size)
        for j in range(size)
    ]
    outputs = gradient.shape[-1]
    columns = jnp.concatenate(seen, axis=-1).reshape(-1, size * size * channels)
    return (columns.T @ gradient.reshape(-1, outputs)).reshape(size, size, channels, outputs)


def skip(x: Features, stride: int) -> Output:
    """Every ``stride``-th row and column of (B, h, w, C)."""
    if stride == 1:
        return x
    # Without the barrier XLA's GPU compiler fuses the slice into the product, and aborts where a
    # basic block adds its shortcut ("subdim_size_accumulator", jaxlib 0.10.2 and 0.11.2).
    steps = 1, stride, stride, 1
    return jax.lax.optimization_barrier(jax.lax.slice(x, (0, 0, 0, 0), x.shape, steps))


def patches(images: Array, size: int) -> Array:
    """The pixels of each patch, (B, H / size, W / size, size · size · C)."""
    batch, height, width, channels = images.shape
    rows, columns = height // size, width // size
    x = images.reshape(batch, rows, size, columns, size, channels).swapaxes(2, 3)
    return x.reshape(batch, rows, columns, size * size * channels)


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
