import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pgfl_jax.models.backbones.resnet import BasicBlock, Bottleneck, ResNet
from tests.loops import by_loops


def _norm(x, parameters):
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return (x - mean) / np.sqrt(var + 1e-5) * parameters["scale"] + parameters["bias"]


def _reference_block(x, p, stride, bottleneck):
    kernels = {
        name: p[name]["dense"]["kernel"][None, None] if "dense" in p[name] else p[name]["kernel"]
        for name in p
        if "conv" in name
    }
    convs = ("conv1", "conv2", "conv3") if bottleneck else ("conv1", "conv2")
    strided = "conv2" if bottleneck else "conv1"
    y = x
    for i, name in enumerate(convs):
        y = _norm(by_loops(y, kernels[name], stride if name == strided else 1), p[f"bn{i + 1}"])
        if name != convs[-1]:
            y = np.maximum(y, 0)
    if "downsample_conv" in p:
        x = _norm(by_loops(x, kernels["downsample_conv"], stride), p["downsample_bn"])
    return np.maximum(x + y, 0)


@pytest.mark.parametrize(("block", "stride", "channels"), [
    (BasicBlock, 2, 3), (BasicBlock, 1, 4), (Bottleneck, 2, 3), (Bottleneck, 1, 16),
])  # fmt: skip
def test_blocks_equal_a_reference_by_loops(block, stride, channels):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 6, 4, channels)).astype(np.float32)
    module = block(4, stride)
    variables = module.init(jax.random.key(0), jnp.asarray(x), train=True)
    params = jax.tree.map(
        lambda p: p + 0.1 * rng.normal(size=p.shape).astype(np.float32), variables["params"]
    )
    y, _ = module.apply(
        variables | {"params": params}, jnp.asarray(x), train=True, mutable=["batch_stats"]
    )
    reference = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
    expected = _reference_block(x.astype(np.float64), reference, stride, block is Bottleneck)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_the_patch_stem_is_a_4x4_convolution_of_stride_4():
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(2, 8, 12, 3)), jnp.float32)
    net = ResNet(BasicBlock, (0,), (5,), (1,), patch_stem=True)
    variables = net.init(jax.random.key(0), images, train=False)
    y = net.apply(variables, images, train=False)
    kernel = variables["params"]["conv1"]["dense"]["kernel"].reshape(4, 4, 3, 5)
    conv = jax.lax.conv_general_dilated(
        images, kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(y, np.maximum(conv / np.sqrt(1 + 1e-5), 0), rtol=1e-4, atol=1e-5)
