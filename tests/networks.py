"""Networks with random weights, whose numbers say as much as a trained network's."""

import dataclasses
import functools
from unittest import mock

import jax
import numpy as np

import pgfl_jax
from pgfl_jax.embedder import Embedder
from pgfl_jax.experiment import make_model
from pgfl_jax.models import main_branch
from pgfl_jax.models.backbones import BACKBONES, ConvNeXt, ResNet, Swin, ViT
from pgfl_jax.models.backbones.resnet import Bottleneck
from tests.runs import GOLDEN_RUN


@functools.cache
def golden():
    """The embedder of the stored run, for 64x32 pixels."""
    return pgfl_jax.load(GOLDEN_RUN)


FOUR_BLOCKS = (1, 1, 1, 1), (24, 32, 40, 48)


SMALL_NETWORKS = {
    "vit": ViT(24, 2, 3),
    "vit_overlap": ViT(24, 2, 3, stride=12),
    "vit_clip": ViT(24, 2, 3, clip=True),
    "swin": Swin(16, (2, 1), (1, 2), 8, solider=True),
    "convnext": ConvNeXt(16, (1, 1), (1, 2)),
}


def small_networks():
    """A context with ``four_blocks``, ``four_blocks_ibn_a`` and other kinds with few blocks.

    They have all that ResNet-50, ResNet-50-IBN-a and the other kinds are made of.
    """
    plain = ResNet(Bottleneck, *FOUR_BLOCKS)
    normalised = ResNet(Bottleneck, *FOUR_BLOCKS, ibn_stages=3)
    return mock.patch.dict(
        BACKBONES, four_blocks=plain, four_blocks_ibn_a=normalised, **SMALL_NETWORKS
    )


def small_twins():
    """A context with those of these networks in PyTorch that have a twin."""
    from pgfl_jax.export import torch_model

    def twin(net):
        if isinstance(net, ViT):
            options = net.width, net.depth, net.heads
            return lambda size: torch_model.ViT(size, *options, stride=net.stride, clip=net.clip)
        options = {"head_width": net.head_width, "solider": net.solider}
        sizes = net.width, net.stage_sizes, net.strides
        return lambda size: torch_model.Swin(size, *sizes, **options)

    twins = {name: twin(net) for name, net in SMALL_NETWORKS.items() if name != "convnext"}
    return mock.patch.object(torch_model, "BACKBONES", torch_model.BACKBONES | twins)


def random_variables(model):
    """The main branch's variables of a network for 64x32 pixels, none trivially 0 or 1."""
    images = jax.ShapeDtypeStruct((1, 64, 32, 3), np.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    rng = np.random.default_rng(0)

    def drawn(path, shape):
        if path[-1].key == "kernel":  # keeps the variance from layer to layer
            values = rng.normal(0, np.prod(shape.shape[:-1]) ** -0.5, shape.shape)
        elif path[-1].key in ("mean", "bias", "cls_token", "pos_embed"):
            values = rng.normal(0, 0.1, shape.shape)
        elif path[-1].key == "power":
            values = np.array(2.5)
        else:
            values = rng.uniform(0.5, 1.5, shape.shape)
        return values.astype(np.float32)

    return main_branch(jax.tree_util.tree_map_with_path(drawn, shapes))


def random_embedder(backbone, pooling, dtype="float32"):
    """The embedder of such a network."""
    config = golden().config
    network = dataclasses.replace(config.model, backbone=backbone, pooling=pooling, dtype=dtype)
    config = dataclasses.replace(config, model=network)
    model = make_model(config, num_identities=1)
    return Embedder(config, model, random_variables(model), step=1)
