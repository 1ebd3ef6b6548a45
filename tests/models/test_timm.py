"""Vision transformers against timm's, with random weights, in float64."""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from unittest import mock

import jax
import numpy as np
import pytest

from pgfl_jax.models.backbones import BACKBONES, ViT
from pgfl_jax.pretrained import from_state_dict, load_backbone, save_state_dict, to_state_dict
from tests.test_pretrained import abstract

torch = pytest.importorskip("torch")


class _Anything(type):
    """A class with any attribute."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(name, (), {})


class _Empty(types.ModuleType):
    __getattr__ = _Anything.__getattr__


class _StandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """torchvision, which timm imports for its data; the networks do not need it."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return _Empty(spec.name)

    def exec_module(self, module):
        pass


@pytest.fixture(scope="module")
def timm():
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed: pip install -c constraints.txt -e '.[parity]'")
    try:
        importlib.import_module("torchvision")
        finders = sys.meta_path
    except Exception:  # a build for another PyTorch is a RuntimeError
        finders = [_StandIn(), *sys.meta_path]
    with mock.patch.object(sys, "meta_path", finders):
        import timm.layers
        from timm.models.vision_transformer import VisionTransformer
    return types.SimpleNamespace(
        VisionTransformer=VisionTransformer, resample=timm.layers.resample_abs_pos_embed
    )


NETWORKS = {
    "stride 16": {},
    "stride 12": {"stride": 12},
    "CLIP": {"clip": True},
}


def _theirs(timm, *, size, stride=16, clip=False):
    """Two blocks with random parameters; timm itself has no overlapping patches."""
    options = {"norm_layer": torch.nn.LayerNorm, "act_layer": "quick_gelu"} if clip else {}
    net = timm.VisionTransformer(
        size, 16, embed_dim=24, depth=2, num_heads=3, num_classes=0, pre_norm=clip, **options
    )
    net.patch_embed.proj.stride = stride, stride
    count = 1 + np.prod([(side - 16) // stride + 1 for side in size])
    net.pos_embed = torch.nn.Parameter(torch.zeros(1, count, 24))
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for value in net.parameters():
            value.copy_(torch.tensor(rng.normal(0, 0.3, value.shape)))
    return net.double()


@pytest.mark.parametrize("name", NETWORKS)
def test_features_and_gradients_are_timms(timm, name):
    size, options = (256, 128), NETWORKS[name]
    ours, theirs = ViT(24, 2, 3, **options), _theirs(timm, size=size, **options)
    rng = np.random.default_rng(1)
    images = rng.normal(size=(2, *size, 3))
    direction = rng.normal(size=(2, *ours.map_shape(*size), 24))

    tokens = theirs.forward_features(torch.tensor(images).permute(0, 3, 1, 2))[:, 1:]
    (tokens * torch.tensor(direction).flatten(1, 2)).sum().backward()

    abstract = jax.eval_shape(
        lambda x: ours.init(jax.random.key(0), x, train=False), images.astype(np.float32)
    )
    weights = {f"trunk.{name}": x.detach().numpy() for name, x in theirs.named_parameters()}
    variables = {"params": {"trunk": abstract["params"]}, "batch_stats": {}}
    params = from_state_dict(weights, variables, 1)[0]["params"]["trunk"]
    with jax.enable_x64(True):

        def loss(params, images):
            features = ours.apply({"params": params}, images, train=True)
            return (features * direction).sum(), features

        gradients, features = jax.jit(jax.grad(loss, has_aux=True))(params, images)
    expected = tokens.detach().numpy().reshape(features.shape)
    np.testing.assert_allclose(features, expected, rtol=0, atol=1e-9)
    found = to_state_dict({"params": {"trunk": gradients}}, 1)
    for name, value in theirs.named_parameters():
        gradient = value.grad.numpy()
        scale = np.abs(gradient).max()
        np.testing.assert_allclose(found[f"trunk.{name}"], gradient, rtol=0, atol=1e-7 * scale)


@pytest.mark.parametrize(("size", "grid"), [((224, 224), (14, 14)), ((256, 128), (16, 8))])
def test_its_files_are_read_and_resampled_as_timm_does(timm, size, grid, tmp_path):
    theirs = _theirs(timm, size=size).float()
    weights = {name: value.detach().numpy() for name, value in theirs.state_dict().items()}
    save_state_dict(tmp_path / "timm.safetensors", weights)
    with mock.patch.dict(BACKBONES, vit_for_timm=ViT(24, 2, 3)):
        shapes = abstract("vit_for_timm")
    variables, report = load_backbone(tmp_path / "timm.safetensors", shapes, map_shape=(4, 2))
    assert (dict(report.missing), dict(report.left_over)) == ({}, {})
    expected = timm.resample(theirs.pos_embed.detach(), [4, 2], list(grid))
    found = variables["params"]["trunk"]["pos_embed"]
    np.testing.assert_allclose(found, expected, atol=1e-6)
