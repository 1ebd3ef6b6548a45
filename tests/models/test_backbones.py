"""What holds for every kind of backbone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pgfl_jax.models.backbones import BACKBONES, ConvNeXt, ResNet, Swin, ViT
from pgfl_jax.models.backbones.resnet import BasicBlock

# Parameters of the networks in torchvision and timm, without their classifiers and, of ConvNeXt,
# the LayerNorm before it.
PARAMETERS = {
    "resnet18": 11_176_512, "resnet34": 21_284_672, "resnet50": 23_508_032, "resnet101": 42_500_160,
    # IBN-a normalises half of the channels in another way, with as many parameters.
    "resnet50_ibn_a": 23_508_032,
    "vit_tiny": 5_524_416, "vit_small": 21_665_664, "vit_base": 85_798_656,
    "vit_base_clip": 85_798_656 + 2 * 768 - 768,
    "swin_tiny": 28_288_354 - 769_000, "swin_small": 49_606_258 - 769_000,
    "swin_base": 87_768_224 - 1_025_000, "swin_tiny_solider": 27_519_354 + 192 + 384 + 768,
    "convnext_tiny": 28_589_128 - 769_000 - 2 * 768,
}  # fmt: skip
SMALL = {
    "ResNet": ResNet(BasicBlock, (1, 1), (8, 16), (1, 2), patch_stem=True),
    "ViT": ViT(24, 2, 3),
    "ViT, stride 12": ViT(24, 2, 3, stride=12),
    "Swin": Swin(8, (2, 2), (1, 2), 4),
    "Swin, last stride 1": Swin(8, (2, 2), (1, 1), 4),
    "ConvNeXt": ConvNeXt(8, (2, 2), (1, 2)),
    "ConvNeXt, last stride 1": ConvNeXt(8, (2, 2), (1, 1)),
}
# Networks of two blocks, and the name of the second one.
DROPPING = {
    "ViT": (ViT(24, 2, 3), "blocks_1"),
    "Swin": (Swin(8, (2,), (1,), 4), "layers_0_blocks_1"),
    "ConvNeXt": (ConvNeXt(8, (2,), (1,)), "stages_0_blocks_1"),
}
STEMS = {"conv1", "bn1", "patch_embed", "patch_embed_norm", "cls_token", "pos_embed", "stem_0",
         "stem_1"}  # fmt: skip


def _abstract(backbone, height, width):
    images = jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32)
    init = functools.partial(backbone.init, train=True)
    variables = jax.eval_shape(init, jax.random.key(0), images)
    apply = functools.partial(backbone.apply, train=False)
    return variables, jax.eval_shape(apply, variables, images)


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_layout_is_the_published_one(name):
    init = functools.partial(BACKBONES[name].init, train=False)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(init, jax.random.key(0), images)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == PARAMETERS[name]


@pytest.mark.parametrize(
    ("name", "size"),
    [("resnet8", (128, 64)), *((x, (256, 128)) for x in ("resnet50", "swin_tiny", "vit_tiny"))],
)
def test_the_map_has_16_by_8_cells(name, size):
    assert BACKBONES[name].map_shape(*size) == (16, 8)


@pytest.mark.parametrize("size", [(64, 32), (96, 48)])
@pytest.mark.parametrize("name", SMALL)
def test_the_map_is_what_map_shape_says(name, size):
    backbone = SMALL[name].copy(dtype=jnp.bfloat16)
    variables, features = _abstract(backbone, *size)
    assert features.shape == (2, *backbone.map_shape(*size), backbone.channels)
    assert features.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    assert set(backbone.layers) == set(variables["params"]) - STEMS


@pytest.mark.parametrize("name", [name for name in SMALL if "ViT" not in name])
def test_sizes_that_strides_do_not_divide_are_refused(name):
    for size in ((66, 32), (0, 34)):
        with pytest.raises(ValueError, match="must be a multiple of the stride, "):
            SMALL[name].map_shape(*size)


def _drawn(net, images, scale=0.3):
    """The variables of a network, none trivially 0 or 1."""
    variables = jax.jit(functools.partial(net.init, train=True))(jax.random.key(1), images)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: x + scale * rng.normal(size=x.shape).astype(x.dtype), variables)


@pytest.mark.parametrize("name", DROPPING)
def test_recomputing_changes_nothing(name):
    images = jax.random.normal(jax.random.key(0), (4, 32, 16, 3))
    net = DROPPING[name][0].copy(drop_path=0.5)
    variables = _drawn(net, images, 0.05)

    def gradient(remat):
        def loss(v):
            keys = {"drop_path": jax.random.key(2)}
            return jnp.sum(jnp.sin(net.copy(remat=remat).apply(v, images, train=True, rngs=keys)))

        return jax.tree.leaves(jax.jit(jax.grad(loss))(variables))

    expected = gradient("none")
    for remat in ("convolutions", "blocks"):
        for found, leaf in zip(gradient(remat), expected, strict=True):
            np.testing.assert_allclose(found, leaf, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", DROPPING)
def test_a_dropped_residual_leaves_the_shortcut(name):
    whole, last = DROPPING[name]
    net = whole.copy(drop_path=0.99)  # the second block is dropped, but in 1 % of the pictures
    images = jax.random.normal(jax.random.key(0), (16, 32, 32, 3))
    variables = _drawn(net, images)
    keys = {"drop_path": jax.random.key(4)}
    found = net.apply(variables, images, train=True, rngs=keys)
    kept = {name: v for name, v in variables["params"].items() if name != last}
    one = {"depth": 1} if isinstance(whole, ViT) else {"stage_sizes": (1,)}
    without = whole.copy(**one).apply({"params": kept}, images, train=True)
    same = np.isclose(found, without, atol=1e-5).all((1, 2, 3))
    assert same.sum() >= 14
    evaluated = net.apply(variables, images, train=False)
    np.testing.assert_array_equal(evaluated, whole.apply(variables, images, train=False))
    assert not np.isclose(evaluated, without, atol=1e-4).all((1, 2, 3)).any()
