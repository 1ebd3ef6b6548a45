import functools
import math

import jax
import numpy as np
import pytest

from pgfl_jax.distributed.sharding import batch_sharding, make_mesh
from pgfl_jax.models.backbones import ViT
from pgfl_jax.models.backbones.vit import residual_scales


@pytest.mark.parametrize(("stride", "size"), [(16, (250, 0)), (16, (0, 8)), (12, (12, 0))])
def test_sizes_that_patches_cannot_cover_are_refused(stride, size):
    with pytest.raises(ValueError, match="must be"):
        ViT(16, 1, 2, stride=stride).map_shape(*size)


def _norm(x, p, epsilon):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + epsilon) * p["scale"] + p["bias"]


def _dense(x, p):
    return x @ p["kernel"] + p["bias"]


def _block(x, p, heads, clip, epsilon):
    y = _dense(_norm(x, p["norm1"], epsilon), p["attn"]["qkv"])
    query, key, value = (  # (B, heads, tokens, width / heads)
        part.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2) for part in np.split(y, 3, axis=-1)
    )
    weights = np.exp(query @ key.swapaxes(2, 3) / math.sqrt(query.shape[-1]))
    mixed = (weights / weights.sum(-1, keepdims=True)) @ value
    x = x + _dense(mixed.swapaxes(1, 2).reshape(x.shape), p["attn"]["proj"])
    y = _dense(_norm(x, p["norm2"], epsilon), p["mlp"]["fc1"])
    normal = 0.5 * (1 + np.vectorize(math.erf)(y / math.sqrt(2)))
    return x + _dense(y * (1 / (1 + np.exp(-1.702 * y)) if clip else normal), p["mlp"]["fc2"])


def _reference(images, p, net):
    rows, columns = net.map_shape(*images.shape[1:3])
    stride, epsilon = net.stride, 1e-5 if net.clip else 1e-6
    cells = [
        images[:, i * stride : i * stride + 16, j * stride : j * stride + 16].reshape(2, -1)
        for i in range(rows)
        for j in range(columns)
    ]
    x = np.stack(cells, 1) @ p["patch_embed"]["kernel"] + p["patch_embed"].get("bias", 0)
    token = np.broadcast_to(p["cls_token"], (2, 1, net.width))
    x = np.concatenate([token, x], 1) + p["pos_embed"]
    if net.clip:
        x = _norm(x, p["norm_pre"], epsilon)
    for i in range(net.depth):
        x = _block(x, p[f"blocks_{i}"], net.heads, net.clip, epsilon)
    x = _norm(x, p["norm"], epsilon)
    return x[:, 1:].reshape(2, rows, columns, net.width), x[:, 0]


@pytest.mark.parametrize("options", [{}, {"stride": 12}, {"clip": True}], ids=str)
def test_the_network_equals_a_reference_in_numpy(options):
    net = ViT(24, 2, 3, **options)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 64, 32, 3))
    init = lambda x: net.init(jax.random.key(0), x, train=False)  # noqa: E731
    shapes = jax.eval_shape(init, images.astype(np.float32))
    variables = jax.tree.map(lambda leaf: 0.3 * rng.normal(size=leaf.shape), shapes)
    with jax.enable_x64(True):
        apply = functools.partial(net.apply, train=False)
        run = jax.jit(lambda v, x: (apply(v, x), *apply(v, x, method="with_class_token")))
        alone, features, token = run(variables, images)
    np.testing.assert_array_equal(alone, features)
    pairs = zip((features, token), _reference(images, variables["params"], net), strict=True)
    for found, expected in pairs:
        np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-12)


def test_residuals_are_dropped_by_their_rates_and_scaled():
    scales = np.asarray(residual_scales(jax.random.key(3), (0.0, 0.2), 4000))
    assert scales.shape == (2, 2, 4000)
    np.testing.assert_array_equal(scales[0], 1)
    assert set(np.unique(scales[1])) == {0, np.float32(1 / 0.8)}
    # Four standard deviations of a share among 4,000.
    assert np.abs((scales[1] == 0).mean(-1) - 0.2).max() < 4 * math.sqrt(0.16 / 4000)
    assert 0.02 < np.mean((scales[1, 0] == 0) & (scales[1, 1] == 0)) < 0.06  # independent: 0.04


def test_what_is_dropped_does_not_depend_on_the_mesh():
    net = ViT(24, 3, 3, drop_path=0.6)
    images = jax.random.normal(jax.random.key(0), (16, 32, 32, 3))
    variables = net.init(jax.random.key(1), images, train=True)

    def run(count):
        split = batch_sharding(make_mesh(jax.devices()[:count]))

        def forward(images):
            return net.apply(variables, images, train=True, rngs={"drop_path": jax.random.key(5)})

        forward = jax.jit(forward, in_shardings=split, out_shardings=split)
        return np.asarray(forward(jax.device_put(images, split)))

    np.testing.assert_allclose(run(8), run(1), rtol=1e-4, atol=1e-5)
