"""BatchNorm with its convolution, shortcut and ReLU, in few passes over the activations.

Moving activations takes most of a residual network's training step, on GPUs and on CPUs. Three
forms of one definition,

    z = max(0, scale · (x * k - mean) / √(var + ε) + bias + shortcut),

with the mean and the biased variance of each channel of x * k over the batch:

- Evaluation: the statistics are the running averages, so they go into kernel and bias.
- Training, where a 1x1 convolution has more outputs than inputs, and many rows: the statistics
  follow from the mean m and the covariance C of x, which is smaller: mean = kᵀ m,
  var = diag(kᵀ C k). The kernel then takes them up, as in evaluation, and x * k itself never
  exists.
- Training, elsewhere: :func:`normalise`, with a backward pass of its own.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pgfl_jax.models.column_sums import column_sums, evaluate
from pgfl_jax.models.convolution import convolve, skip
from pgfl_jax.precision import upcast

EPSILON = 1e-5
MOMENTUM = 0.9
_ENOUGH = 16
"""Rows per input channel from which a covariance costs less than what it saves."""

Features = Float[Array, "*batch channels"]
PerChannel = Float[Array, " channels"]


class Statistics(NamedTuple):
    """Mean and biased variance of each channel."""

    mean: PerChannel
    var: PerChannel


def _on(x: Array, vector: Array) -> Array:
    """A vector over the last axis of ``x``."""
    return vector.reshape((1,) * (x.ndim - 1) + (-1,))


def _rows(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def _precision(x: Array) -> jax.lax.Precision:
    """Of the products that make statistics: in 16 bits, matrix units keep every digit of ``x``."""
    return jax.lax.Precision["HIGHEST" if jnp.finfo(x.dtype).bits > 16 else "DEFAULT"]


def affine(
    scale: PerChannel, bias: PerChannel, mean: PerChannel, var: PerChannel
) -> tuple[PerChannel, PerChannel]:
    """(a, b) with scale · (x - mean) / √(var + ε) + bias = a x + b."""
    factor = scale * jax.lax.rsqrt(var + EPSILON)
    return factor, bias - mean * factor


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def normalise(
    x: Features,
    scale: PerChannel,
    bias: PerChannel,
    shift: PerChannel,
    shortcut: Features | None,
    relu: bool,
) -> tuple[Features, Statistics]:
    """act(scale · (x - mean) / √(var + ε) + bias + shortcut), and the batch's statistics.

    One pass finds both moments of x - shift, where the shift should be near the mean:
    mean = shift + E[x - shift] and var = E[(x - shift)²] - E[x - shift]². The nearer it is, the
    fewer digits cancel. No gradient flows through the returned statistics.

    With d the gradient of the output where the ReLU let it through, n rows and
    u = (x - mean) / √(var + ε),

        ∂bias = Σ d,   ∂scale = Σ d u,   ∂shortcut = d,
        ∂x = scale / √(var + ε) · (d - ∂bias / n - u ∂scale / n).

    Reference: S. Ioffe, C. Szegedy, "Batch Normalization", ICML 2015.
    """
    return _forward(x, scale, bias, shift, shortcut, relu)[0]


def _forward(
    x: Features,
    scale: PerChannel,
    bias: PerChannel,
    shift: PerChannel,
    shortcut: Features | None,
    relu: bool,
) -> tuple[tuple[Features, Statistics], tuple]:
    count = x.size // x.shape[-1]
    sums = column_sums(lambda x, shift: (x - shift, jnp.square(x - shift)), (_rows(x),), (shift,))
    first, second = (total / count for total in sums)
    mean, var = shift + first, jnp.maximum(second - jnp.square(first), 0)
    factor, offset = affine(scale, bias, mean, var)
    y = upcast(x) * _on(x, factor) + _on(x, offset)
    if shortcut is not None:
        y = y + shortcut
    y = (jax.nn.relu(y) if relu else y).astype(x.dtype)
    # Without a shortcut, x alone says where the ReLU lets a value through.
    kept = y if relu and shortcut is not None else None
    return (y, Statistics(mean, var)), (x, scale, bias, mean, var, shortcut is not None, kept)


def _backward(relu: bool, saved: tuple, gradients: tuple[Features, Statistics]) -> tuple:
    x, scale, bias, mean, var, has_shortcut, y = saved
    inverse = jax.lax.rsqrt(var + EPSILON)
    factor = scale * inverse
    matrices: tuple[Array, ...] = _rows(x), _rows(gradients[0])
    if y is not None:
        d, d_bias, projection = column_sums(
            lambda x, gradient, y, mean: ((d := jnp.where(y > 0, gradient, 0)), d * (x - mean)),
            (*matrices, _rows(y)),
            (mean,),
            keep=True,
        )
    else:

        def terms(
            x: Array, gradient: Array, mean: Array, factor: Array, offset: Array
        ) -> tuple[Array, Array]:
            # As in the forward pass, to the last bit.
            d = jnp.where(x * factor + offset > 0, gradient, 0) if relu else gradient
            return d, d * (x - mean)

        vectors = mean, factor, bias - mean * factor
        d_bias, projection = column_sums(terms, matrices, vectors)
        d, _ = evaluate(terms, matrices, vectors)  # again: cheaper than writing and reading it
    count = matrices[0].shape[0]
    slope = inverse * inverse * projection / count
    centred = upcast(matrices[0]) - mean[None]
    d_x = factor[None] * (upcast(d) - (d_bias / count)[None] - centred * slope[None])
    d_shortcut = d.astype(x.dtype).reshape(x.shape) if has_shortcut else None
    d_x = d_x.astype(x.dtype).reshape(x.shape)
    return d_x, inverse * projection, d_bias, jnp.zeros_like(mean), d_shortcut


normalise.defvjp(_forward, _backward)


@jax.custom_vjp
def moments(
    rows: Float[Array, "rows channels"],
) -> tuple[PerChannel, Float[Array, "channels channels"]]:
    """E[x] and E[x xᵀ] over the rows.

    The backward pass takes the second one's gradient to be symmetric.
    """
    count = rows.shape[0]
    products = jax.lax.dot_general(
        rows,
        rows,
        (((0,), (0,)), ((), ())),
        precision=_precision(rows),
        preferred_element_type=upcast(rows).dtype,
    )
    return column_sums(lambda x: (x,), (rows,), ())[0] / count, products / count


def _moments_backward(rows: Array, gradients: tuple[Array, Array]) -> tuple[Array]:
    mean, products = (gradient / rows.shape[0] for gradient in gradients)
    through = rows @ (2 * products).astype(rows.dtype)
    return ((upcast(through) + mean[None]).astype(rows.dtype),)


moments.defvjp(lambda rows: (moments(rows), rows), _moments_backward)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _finish(y: Features, offset: PerChannel, shortcut: Features | None, relu: bool) -> Features:
    """act(y + offset + shortcut). The backward pass needs the output alone."""
    # In the type of y: XLA's GPU compiler then makes it part of the convolution or product.
    total = y + _on(y, offset.astype(y.dtype))
    if shortcut is not None:
        total = total + shortcut
    return jax.nn.relu(total) if relu else total


def _finish_forward(
    y: Features, offset: PerChannel, shortcut: Features | None, relu: bool
) -> tuple[Features, tuple[Features | None, bool]]:
    z = _finish(y, offset, shortcut, relu)
    return z, (z if relu else None, shortcut is not None)


def _finish_backward(
    _relu: bool, saved: tuple[Features | None, bool], gradient: Features
) -> tuple[Features, PerChannel, Features | None]:
    z, has_shortcut = saved
    rows = _rows(gradient)
    if z is not None:
        rows, d_offset = column_sums(
            lambda d, z: (jnp.where(z > 0, d, 0),), (rows, _rows(z)), (), keep=True
        )
    else:
        (d_offset,) = column_sums(lambda d: (d,), (rows,), ())
    d = rows.reshape(gradient.shape)
    return d, d_offset, d if has_shortcut else None


_finish.defvjp(_finish_forward, _finish_backward)


class BatchNorm(nn.Module):
    """BatchNorm over all axes but the last, with what comes before and after it.

    Attributes:
        features: channels.
        use_running_average: normalise by the running averages, instead of by the batch's
            statistics, which then update them, r ← 0.9 r + 0.1 s.
        dtype: of the result; statistics are at least float32. None: that of the parameters.
    """

    features: int
    use_running_average: bool
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Declare scale, bias and running averages."""
        shape = (self.features,), jnp.float32
        self.scale = jnp.asarray(self.param("scale", nn.initializers.ones, *shape))
        self.bias = jnp.asarray(self.param("bias", nn.initializers.zeros, *shape))
        if self.is_initializing() or self.has_variable("batch_stats", "mean"):
            self.mean = self.variable("batch_stats", "mean", jnp.zeros, *shape)
            self.var = self.variable("batch_stats", "var", jnp.ones, *shape)

    def __call__(
        self, x: Features, shortcut: Features | None = None, *, relu: bool = False
    ) -> Features:
        """act(BatchNorm(x) + shortcut)."""
        x = x.astype(self.dtype or self.scale.dtype)
        if self.use_running_average:
            factor, offset = self._running() or (self.scale, self.bias)
            return _finish(upcast(x) * _on(x, factor), offset, shortcut, relu).astype(x.dtype)
        shift = jax.lax.stop_gradient(self.mean.value)
        y, statistics = normalise(x, self.scale, self.bias, shift, shortcut, relu)
        self._update(statistics)
        return y

    def after(
        self,
        x: Array,
        kernel: Array,
        stride: int = 1,
        shortcut: Features | None = None,
        *,
        relu: bool = False,
    ) -> Features:
        """act(BatchNorm(x * kernel) + shortcut)."""
        dtype = self.dtype or self.scale.dtype
        x = x.astype(dtype)
        if self.use_running_average:
            offset = self.bias
            if running := self._running():
                factor, offset = running
                kernel = kernel * _on(kernel, factor)
            y = convolve(x, kernel.astype(dtype), stride)
            return _finish(y, offset, shortcut, relu)
        if kernel.ndim == 2:
            x, stride = skip(x, stride), 1
            if kernel.shape[1] > kernel.shape[0] and _rows(x).shape[0] >= _ENOUGH * kernel.shape[0]:
                return self._after_small_input(x, kernel, shortcut, relu)
        y = checkpoint_name(convolve(x, kernel.astype(dtype), stride), "convolution")
        return self(y, shortcut, relu=relu)

    def _after_small_input(
        self, x: Array, kernel: Array, shortcut: Features | None, relu: bool
    ) -> Features:
        rows = _rows(x)
        mean_in, products = moments(rows)
        covariance = products - jnp.outer(mean_in, mean_in)
        spread = jnp.matmul(covariance, kernel, precision=_precision(x))
        var = jnp.sum(kernel * spread, axis=0)
        var = jnp.maximum(var, 0)
        factor = self.scale * jax.lax.rsqrt(var + EPSILON)
        scaled = (kernel * factor[None]).astype(x.dtype)
        # By the rounded kernel: then the result's mean is the bias to full precision.
        mean = jnp.matmul(mean_in, upcast(scaled), precision=jax.lax.Precision.HIGHEST)
        self._update(
            Statistics(jnp.matmul(mean_in, kernel, precision=jax.lax.Precision.HIGHEST), var)
        )
        y = x @ scaled
        return checkpoint_name(_finish(y, self.bias - mean, shortcut, relu), "convolution")

    def _running(self) -> tuple[PerChannel, PerChannel] | None:
        """Factor and offset by the running averages; None where they were folded."""
        if not self.has_variable("batch_stats", "mean"):
            return None
        mean, var = jnp.asarray(self.mean.value), jnp.asarray(self.var.value)
        return affine(self.scale, self.bias, mean, var)

    def _update(self, statistics: Statistics) -> None:
        if self.is_initializing():
            return
        mean, var = jax.lax.stop_gradient(statistics)
        self.mean.value = MOMENTUM * self.mean.value + (1 - MOMENTUM) * mean
        self.var.value = MOMENTUM * self.var.value + (1 - MOMENTUM) * var


def fold(params: Mapping[str, Any], stats: Mapping[str, Any], dtype: DTypeLike) -> dict[str, Any]:
    """Parameters for evaluation without running averages: they go into kernels and biases.

    Args:
        params: of a network whose convolutions and BatchNorms have names like ``conv1``, ``bn1``.
        stats: its running averages.
        dtype: of the kernels.

    Returns:
        Parameters of the same structure. :class:`BatchNorm` takes them, given no averages.
    """
    folded = dict(params)
    for name, averages in stats.items():
        if "mean" not in averages:
            folded[name] = fold(params[name], averages, dtype)
            continue
        factor, offset = affine(**params[name], **averages)
        convolution = name.replace("bn", "conv")
        if convolution != name:
            folded[convolution] = jax.tree.map(
                lambda kernel, factor=factor: (kernel * _on(kernel, factor)).astype(dtype),
                params[convolution],
            )
        folded[name] = {"scale": factor, "bias": offset}
    return folded
