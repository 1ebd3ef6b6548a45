"""Networks against timm's and torchvision's, with random weights, in float64."""

import functools
import importlib
import importlib.util
import types
from unittest import mock

import jax
import numpy as np
import pytest

from pgfl_jax.models.backbones import BACKBONES, ConvNeXt, Swin, ViT
from pgfl_jax.pretrained import load_backbone, save_state_dict
from tests.test_pretrained import abstract

torch = pytest.importorskip("torch")


def _torchvision():
    """The package; the networks do not need the operators of a build for another PyTorch."""
    try:
        return importlib.import_module("torchvision")
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return importlib.import_module("torchvision")


@pytest.fixture(scope="module")
def peers():
    for name in ("timm", "torchvision"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed: pip install -c constraints.txt -e '.[parity]'")
    torchvision = _torchvision()
    import timm.layers
    from timm.models import convnext, swin_transformer, vision_transformer
    from torchvision.models import swin_transformer as of_torchvision

    return types.SimpleNamespace(
        ViT=vision_transformer.VisionTransformer,
        Swin=swin_transformer.SwinTransformer,
        ConvNeXt=convnext.ConvNeXt,
        TorchvisionSwin=of_torchvision.SwinTransformer,
        Merging=of_torchvision.PatchMerging,
        TorchvisionConvNeXt=torchvision.models.ConvNeXt,
        OfBlock=torchvision.models.convnext.CNBlockConfig,
        resample=timm.layers.resample_abs_pos_embed,
    )


# Each makes another library's network like ours, for pictures of a size, and its map (N, C, h, w).


def _vit(peers, ours, size):
    """With random parameters; timm itself has no overlapping patches."""
    options = {}
    if ours.clip:
        options = {"norm_layer": torch.nn.LayerNorm, "act_layer": "quick_gelu", "pre_norm": True}
    net = peers.ViT(
        size, 16, embed_dim=24, depth=2, num_heads=3, num_classes=0, global_pool="", **options
    )
    net.patch_embed.proj.stride = ours.stride, ours.stride
    rows, columns = ours.map_shape(*size)
    net.pos_embed = torch.nn.Parameter(torch.zeros(1, 1 + rows * columns, 24))
    return net, lambda x: net(x)[:, 1:].mT.unflatten(2, (rows, columns))


def _swin(peers, ours, size):
    net = peers.Swin(
        size, 4, embed_dim=ours.width, depths=ours.stage_sizes, num_heads=(2, 4),
        window_size=ours.window, num_classes=0, drop_path_rate=0,
    )  # fmt: skip
    return net, lambda x: net.forward_features(x).permute(0, 3, 1, 2)


def _torchvision_swin(peers, ours, size):
    class Overlapping(peers.Merging):
        """With stride 1, by PyTorch's own way of taking overlapping patches."""

        def forward(self, x):
            x = torch.nn.functional.pad(x, (0, 0, 0, 1, 0, 1)).permute(0, 3, 1, 2)
            cells = torch.nn.functional.unfold(x, 2).unflatten(1, (x.shape[1], 2, 2))
            cells = cells.permute(0, 4, 3, 2, 1).flatten(2)  # columns, rows, channels
            cells = cells.unflatten(1, (x.shape[2] - 1, x.shape[3] - 1))
            return self.reduction(self.norm(cells))

    stages = iter(ours.strides[1:])
    net = peers.TorchvisionSwin(
        [4, 4], ours.width, list(ours.stage_sizes), [2, 4], [ours.window] * 2,
        stochastic_depth_prob=0,
        downsample_layer=lambda *x: (Overlapping if next(stages) == 1 else peers.Merging)(*x),
    )  # fmt: skip
    del net.head
    return net, lambda x: net.norm(net.features(x)).permute(0, 3, 1, 2)


def _convnext(peers, ours, size):
    net = peers.ConvNeXt(
        depths=(*ours.stage_sizes, 0), dims=tuple(ours.width * 2**i for i in range(4)),
        num_classes=0, output_stride=8,
    )  # fmt: skip
    del net.stages[3], net.head
    for block in net.stages[2].blocks:  # timm widens them by as much as it reduces the stride
        block.conv_dw.dilation, block.conv_dw.padding = (1, 1), (3, 3)
    return net, lambda x: net.norm_pre(net.stages(net.stem(x)))


def _torchvision_convnext(peers, ours, size):
    widths, sizes = (ours.width, 2 * ours.width, None), ours.stage_sizes
    stages = [peers.OfBlock(*widths[i : i + 2], size) for i, size in enumerate(sizes)]
    net = peers.TorchvisionConvNeXt(stages, stochastic_depth_prob=0)
    del net.classifier
    return net, net.features


# Ours, theirs, and the size of the pictures.
PEERS = {
    "ViT": (ViT(24, 2, 3), _vit, (256, 128)),
    "ViT, stride 12": (ViT(24, 2, 3, stride=12), _vit, (256, 128)),
    "ViT of CLIP": (ViT(24, 2, 3, clip=True), _vit, (256, 128)),
    # In the second stage one window covers an axis.
    "Swin": (Swin(8, (2, 2), (1, 2), 4, window=8), _swin, (128, 64)),
    # Windows divide no map; the last stage has stride 1.
    "Swin, padded": (Swin(8, (2, 2), (1, 1), 4), _torchvision_swin, (256, 128)),
    "ConvNeXt": (ConvNeXt(8, (1, 2), (1, 2)), _torchvision_convnext, (64, 32)),
    "ConvNeXt, last stride 1": (ConvNeXt(8, (1, 1, 1), (1, 2, 1)), _convnext, (64, 32)),
}


def _with_random_parameters(net):
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for value in net.parameters():
            value.copy_(torch.tensor(rng.normal(0, 0.3, value.shape)))
    return net.double()


@pytest.mark.parametrize("name", PEERS)
def test_features_and_gradients_are_theirs(peers, name, tmp_path):
    ours, make, size = PEERS[name]
    theirs, features_of = make(peers, ours, size)
    _with_random_parameters(theirs)
    rng = np.random.default_rng(1)
    images = rng.normal(size=(2, *size, 3))
    direction = rng.normal(size=(2, *ours.map_shape(*size), ours.channels))
    expected = features_of(torch.tensor(images).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    (expected * torch.tensor(direction)).sum().backward()

    init = functools.partial(ours.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), images.astype(np.float32))
    variables = {"params": {"trunk": shapes["params"]}, "batch_stats": {}}

    def in_flax(arrays):
        """As a file of theirs is read."""
        arrays = {name: value.numpy() for name, value in arrays.items()}
        save_state_dict(tmp_path / "net.safetensors", arrays)
        loaded, report = load_backbone(tmp_path / "net.safetensors", variables)
        assert (dict(report.missing), dict(report.left_over)) == ({}, {})
        return loaded["params"]["trunk"]

    params = in_flax({name: value.detach() for name, value in theirs.named_parameters()})
    wanted = in_flax({name: value.grad for name, value in theirs.named_parameters()})
    with jax.enable_x64(True):

        def loss(params, images):
            features = ours.apply({"params": params}, images, train=True)
            return (features * direction).sum(), features

        gradients, features = jax.jit(jax.grad(loss, has_aux=True))(params, images)
    np.testing.assert_allclose(features, expected.detach(), rtol=0, atol=1e-9)
    for path, gradient in jax.tree_util.tree_leaves_with_path(wanted):
        found = functools.reduce(lambda tree, key: tree[key.key], path, gradients)
        scale = np.abs(gradient).max()
        np.testing.assert_allclose(found, gradient, rtol=0, atol=1e-7 * scale, err_msg=str(path))


@pytest.mark.parametrize(("size", "grid"), [((224, 224), (14, 14)), ((256, 128), (16, 8))])
def test_its_files_are_read_and_resampled_as_timm_does(peers, size, grid, tmp_path):
    ours = ViT(24, 2, 3)
    theirs = _with_random_parameters(_vit(peers, ours, size)[0]).float()
    weights = {name: value.detach().numpy() for name, value in theirs.state_dict().items()}
    save_state_dict(tmp_path / "timm.safetensors", weights)
    with mock.patch.dict(BACKBONES, vit_for_timm=ours):
        shapes = abstract("vit_for_timm")
    variables, report = load_backbone(tmp_path / "timm.safetensors", shapes, map_shape=(4, 2))
    assert (dict(report.missing), dict(report.left_over)) == ({}, {})
    expected = peers.resample(theirs.pos_embed.detach(), [4, 2], list(grid))
    found = variables["params"]["trunk"]["pos_embed"]
    np.testing.assert_allclose(found, expected, atol=1e-6)
