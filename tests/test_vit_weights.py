"""Weights of vision transformers, in files with the key names that their authors' code writes."""

import functools

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from pgfl_jax.models.backbones import ViT
from pgfl_jax.pretrained import load_backbone, save_state_dict
from pgfl_jax.weight_tables.vit import resample
from tests.test_pretrained import abstract
from tests.weight_files import assert_one_line, drawn, load, narrow_networks, prefixed

torch = pytest.importorskip("torch")

WIDTH, DEPTH = 16, 12
SMALL = {
    "vit_tiny": ViT(WIDTH, DEPTH, 2),
    "vit_base_clip": ViT(WIDTH, DEPTH, 2, clip=True),
}


@pytest.fixture(autouse=True, scope="module")
def narrow():
    """Networks as deep as the published ones, with fewer channels; the map has 4x2 cells."""
    with narrow_networks(SMALL):
        yield


@functools.cache
def timm(*, depth=DEPTH, width=WIDTH, patch=16, positions=1 + 14 * 14):
    """What ``timm``'s VisionTransformer saves."""
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, positions, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
    }
    for i in range(depth):
        layers = {"attn.qkv": (3, 1), "attn.proj": (1, 1), "mlp.fc1": (4, 1), "mlp.fc2": (1, 4)}
        for layer, (outputs, inputs) in layers.items():
            shapes[f"blocks.{i}.{layer}.weight"] = outputs * width, inputs * width
            shapes[f"blocks.{i}.{layer}.bias"] = (outputs * width,)
        for kind in ("weight", "bias"):
            shapes |= {f"blocks.{i}.norm{n}.{kind}": (width,) for n in (1, 2)}
    shapes |= {"norm.weight": (width,), "norm.bias": (width,)}
    return drawn(shapes)


def _layers_of_blocks(prefix, attention, mlp):
    """Our names of the blocks' layers, and theirs below ``prefix.format(block)``."""
    names = {}
    for i in range(DEPTH):
        ours, theirs = f"blocks.{i}.", prefix.format(i)
        names |= {
            f"{ours}norm1": f"{theirs}ln_1",
            f"{ours}norm2": f"{theirs}ln_2",
            f"{ours}attn.proj": f"{theirs}{attention}.out_proj",
            f"{ours}mlp.fc1": f"{theirs}{mlp[0]}",
            f"{ours}mlp.fc2": f"{theirs}{mlp[1]}",
        }
    return names


def in_torchvision(linear=("mlp.0", "mlp.3")):
    """torchvision's VisionTransformer; older versions call the MLP's layers linear_1, linear_2."""
    names = {
        "cls_token": "class_token",
        "pos_embed": "encoder.pos_embedding",
        "patch_embed.proj": "conv_proj",
        "norm": "encoder.ln",
    }
    prefix = "encoder.layers.encoder_layer_{}."
    names |= _layers_of_blocks(prefix, "self_attention", linear)
    return _renamed(names, "self_attention.in_proj_", prefix)


def in_clip():
    """CLIP's visual tower, with the LayerNorm before the blocks and without a bias on patches."""
    names = {
        "cls_token": "class_embedding",
        "pos_embed": "positional_embedding",
        "patch_embed.proj": "conv1",
        "norm": "ln_post",
    }
    prefix = "transformer.resblocks.{}."
    names |= _layers_of_blocks(prefix, "attn", ("mlp.c_fc", "mlp.c_proj"))
    arrays = _renamed(names, "attn.in_proj_", prefix)
    del arrays["conv1.bias"]
    arrays["class_embedding"] = arrays["class_embedding"].reshape(-1)
    arrays["positional_embedding"] = arrays["positional_embedding"][0]
    norm = {f"ln_pre.{kind}": np.ones(WIDTH, np.float32) for kind in ("weight", "bias")}
    return arrays | norm | {"proj": np.ones((WIDTH, 8), np.float32)}


def _renamed(names, qkv, block):
    renamed = {}
    for name, value in timm().items():
        layer, _, kind = name.rpartition(".")
        if layer.endswith("attn.qkv"):
            renamed[f"{block.format(layer.split('.')[1])}{qkv}{kind}"] = value
        elif name in names:
            renamed[names[name]] = value
        else:
            renamed[f"{names[layer]}.{kind}"] = value
    return renamed


def text_tower():
    names = ("ln_1.weight", "attn.in_proj_weight", "mlp.c_fc.weight")
    blocks = {f"transformer.resblocks.{i}.{name}": 8 for i in range(12) for name in names}
    sizes = blocks | {"positional_embedding": 8, "token_embedding.weight": 8, "ln_final.weight": 8}
    return {name: np.ones(size, np.float32) for name, size in sizes.items()}


def teacher_and_student():
    """DINO, iBOT and PersonViT save both, the student inside DistributedDataParallel."""
    student = {name: value + 1 for name, value in timm().items()}
    heads = {"head.mlp.0.weight": np.ones((4, WIDTH), np.float32)}
    return (
        prefixed("teacher.backbone.", timm())
        | prefixed("student.module.backbone.", student)
        | prefixed("teacher.", heads)
        | prefixed("student.module.", heads)
    )


def mae():
    decoder = {"mask_token": (1, 1, 8), "decoder_pos_embed": (1, 197, 8), "decoder_norm.bias": (8,),
               "decoder_blocks.0.norm1.weight": (8,)}  # fmt: skip
    return timm() | {name: np.ones(shape, np.float32) for name, shape in decoder.items()}


def transreid(*, jigsaw):
    """TransReID: embeddings of cameras, and the copies of the last block that it trains."""
    base, last = dict(timm()), f"blocks.{DEPTH - 1}."
    arrays = {"base.sie_embed": np.ones((6, 1, WIDTH), np.float32)}
    if jigsaw:
        end = {name: base[name] for name in base if name.startswith((last, "norm."))}
        for branch in ("b1", "b2"):
            shift = 0 if branch == "b1" else 1
            for name, value in end.items():
                copy = name.replace(last, "0.") if name.startswith(last) else f"1.{name[5:]}"
                arrays[f"{branch}.{copy}"] = value + shift
        base |= {name: value - 1 for name, value in end.items()}  # never trained
    neck = {"weight": 1, "bias": 0, "running_mean": 2, "running_var": 3}
    arrays |= {f"bottleneck.{k}": np.full(WIDTH, v, np.float32) for k, v in neck.items()}
    return prefixed("base.", base) | arrays


def pass_reid():
    """PASS: part tokens, and the class token's position apart."""
    arrays = dict(timm())
    arrays["cls_pos"], arrays["pos_embed"] = np.split(arrays["pos_embed"], [1], axis=1)
    parts = [f"part_token{i}" for i in (1, 2, 3)] + [f"part{i}_pos" for i in (1, 2, 3)]
    return arrays | {name: np.ones((1, 1, WIDTH), np.float32) for name in parts}


SCHEMES = {
    "timm": lambda: timm() | {"head.weight": np.ones((1000, WIDTH), np.float32)},
    "data parallel": lambda: prefixed("module.", timm()),
    "torchvision": in_torchvision,
    "torchvision, older": lambda: in_torchvision(("mlp.linear_1", "mlp.linear_2")),
    "DINO": teacher_and_student,
    "a teacher alone": lambda: prefixed("backbone.", timm()),
    "PASS": pass_reid,
    "MAE": mae,
    "TransReID": lambda: transreid(jigsaw=False),
    "TransReID with its jigsaw module": lambda: transreid(jigsaw=True),
    "CLIP": lambda: prefixed("visual.", in_clip()) | text_tower(),
    "CLIP-ReID": lambda: prefixed("image_encoder.", in_clip()),
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_fills_the_whole_trunk(scheme, tmp_path):
    backbone = "vit_base_clip" if scheme.startswith("CLIP") else "vit_tiny"
    variables, report = load(SCHEMES[scheme](), tmp_path / "w.safetensors", backbone)
    assert dict(report.missing) == {}
    assert "position embeddings resampled from 14x14 to 4x2" in str(report)
    trunk, arrays = flatten_dict(variables["params"]["trunk"], sep="/"), timm()
    for i in range(DEPTH):
        for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
            theirs = arrays[f"blocks.{i}.{layer}.weight"]
            found = trunk[f"blocks_{i}/{layer.replace('.', '/')}/kernel"]
            np.testing.assert_array_equal(found, theirs.T)
        for name in (f"blocks.{i}.norm1", f"blocks.{i}.norm2", "norm"):
            found = trunk[f"{name.replace(f'blocks.{i}.', f'blocks_{i}/')}/scale"]
            np.testing.assert_array_equal(found, arrays[f"{name}.weight"])
    kernel = arrays["patch_embed.proj.weight"].transpose(2, 3, 1, 0).reshape(-1, WIDTH)
    np.testing.assert_array_equal(trunk["patch_embed/kernel"], kernel)
    np.testing.assert_array_equal(trunk["cls_token"], arrays["cls_token"])
    positions = trunk["pos_embed"]
    np.testing.assert_array_equal(positions[:, 0], arrays["pos_embed"][:, 0])
    cells = resample(arrays["pos_embed"][0, 1:].reshape(14, 14, -1), 4, 2)
    np.testing.assert_array_equal(positions[0, 1:], cells.reshape(8, -1))


def test_the_neck_of_transreid_is_taken_and_its_cameras_are_left(tmp_path):
    variables, report = load(transreid(jigsaw=True), tmp_path / "w.safetensors", "vit_tiny")
    np.testing.assert_array_equal(variables["batch_stats"]["main_neck"]["var"], np.full(WIDTH, 3))
    assert "base.sie_embed" in report.left_over
    assert "the last block and LayerNorm are those of the global branch, b1" in str(report)


@pytest.mark.parametrize(
    ("scheme", "mean", "std"),
    [
        ("CLIP", (0.481, 0.458, 0.408), (0.269, 0.261, 0.276)),
        ("CLIP-ReID", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ("TransReID", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ("torchvision", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("timm", None, None), ("DINO", None, None), ("MAE", None, None), ("PASS", None, None),
    ],
)  # fmt: skip
def test_names_show_how_pictures_were_normalised_or_nothing_is_said(scheme, mean, std, tmp_path):
    backbone = "vit_base_clip" if scheme.startswith("CLIP") else "vit_tiny"
    found = load(SCHEMES[scheme](), tmp_path / "w.safetensors", backbone)[1].normalisation
    if mean is None:
        assert found is None
        return
    assert found.source == f"as {scheme}'s are"
    np.testing.assert_allclose((found.mean, found.std), (mean, std), atol=5e-4)
    assert not found.mismatch(mean, std)
    assert found.mismatch(mean, (0.229, 0.224, 0.3)) and found.mismatch((0.5, 0.44, 0.5), std)


WRONG = {
    "another depth": (
        timm(depth=11), "vit_tiny", r"blocks\.11\.attn\.proj\.bias is missing, in the network",
    ),
    "another patch size": (
        timm(patch=32, positions=50), "vit_tiny", r"channels and patches of 32 pixels, not a ViT",
    ),
    "another width": (
        timm(width=24), "vit_tiny", r"ViT of 12 blocks, 24 channels and patches of 16 pixels, not",
    ),
    "CLIP for a plain network": (
        prefixed("visual.", in_clip()), "vit_tiny", r"it seems to hold a ViT of CLIP of 12 blocks",
    ),
    "a plain one for CLIP's": (timm(), "vit_base_clip", r"not a ViT of CLIP of 12 blocks"),
    "a text tower": (text_tower(), "vit_base_clip", r"without patch_embed\.proj\.weight, as a tow"),
    "layer scale": (
        timm() | {"blocks.0.ls1.gamma": np.ones(WIDTH, np.float32)}, "vit_tiny",
        r"in the file blocks\.0\.ls1\.gamma is \(16,\), in the network missing",
    ),
    "register tokens": (
        timm() | {"reg_token": np.ones((1, 4, WIDTH), np.float32)}, "vit_tiny",
        r"in the file reg_token is \(1, 4, 16\), in the network missing",
    ),
    "rotary positions": (
        timm() | {"rope.periods": np.ones(4, np.float32)}, "vit_tiny", r"in the file rope\.periods",
    ),
    "a distilled DeiT": (
        timm(positions=198), "vit_tiny", r"198 tokens, which are not one class token and a grid",
    ),
    "a ResNet": (
        {"layer1.0.conv1.weight": np.ones(3, np.float32)}, "vit_tiny",
        "not a ViT in a known naming scheme",
    ),
    "a ViT for a ResNet": (timm(), "resnet18", "not a ResNet .*; it holds a ViT"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_the_nearest_wrong_file_gives_one_line(name, tmp_path):
    assert_one_line(*WRONG[name], tmp_path / "w.safetensors")


@pytest.mark.parametrize("sizes", [((14, 14), (16, 8)), ((14, 14), (21, 10)), ((16, 8), (5, 3))])
def test_grids_are_resampled_as_pytorch_does(sizes):
    (old, new), rng = sizes, np.random.default_rng(0)
    grid = rng.normal(size=(*old, 5))
    tensor = torch.tensor(grid).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(tensor, size=new, mode="bicubic", antialias=True)
    np.testing.assert_allclose(resample(grid, *new), expected[0].permute(1, 2, 0), atol=1e-13)


@pytest.mark.parametrize(("count", "grid"), [(128, "16x8"), (210, "21x10"), (196, "14x14")])
def test_the_grid_of_a_file_is_square_or_a_persons(count, grid, tmp_path):
    _, report = load(timm(positions=count + 1), tmp_path / "w.safetensors", "vit_tiny")
    assert f"resampled from {grid} to 4x2" in str(report)


def smooth_positions(rows, columns):
    """As trained ones: neighbours on the grid are alike, up to noise."""
    rng = np.random.default_rng(rows)
    y, x = np.mgrid[:rows, :columns].reshape(2, -1, 1) / [[[rows]], [[columns]]]
    waves = np.sin(6 * y + rng.normal(size=WIDTH)) + np.cos(5 * x + rng.normal(size=WIDTH))
    noisy = waves + 0.2 * rng.normal(size=waves.shape)
    return np.concatenate([np.zeros((1, WIDTH)), noisy])[None].astype(np.float32)


@pytest.mark.parametrize("grid", [(12, 12), (18, 8), (14, 14), (28, 7), (24, 24), (36, 16)])
@pytest.mark.parametrize("shape", [(18, 8), (28, 7), (16, 8), (24, 24)])
def test_of_grids_with_as_many_cells_the_smooth_one_counts(grid, shape, tmp_path):
    positions = smooth_positions(*grid)
    variables = jax.tree.map(lambda leaf: leaf, abstract("vit_tiny"))
    network = variables["params"]["trunk"]
    network["pos_embed"] = jax.ShapeDtypeStruct((1, 1 + shape[0] * shape[1], WIDTH), np.float32)
    save_state_dict(tmp_path / "w.safetensors", timm() | {"pos_embed": positions})
    found, report = load_backbone(tmp_path / "w.safetensors", variables, map_shape=shape)
    cells = found["params"]["trunk"]["pos_embed"][0, 1:]
    expected = resample(positions[0, 1:].reshape(*grid, WIDTH), *shape)
    np.testing.assert_array_equal(cells, expected.reshape(-1, WIDTH))
    sizes = "{}x{} to {}x{}".format(*grid, *shape)
    assert (f"resampled from {sizes}" in str(report)) == (grid != shape)
