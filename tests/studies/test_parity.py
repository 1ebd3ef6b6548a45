"""The PyTorch twin computes what pgfl_jax computes, and the comparison can fail."""

import importlib
import json
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from pgfl_jax.distributed.sharding import make_mesh
from pgfl_jax.experiment import Experiment
from pgfl_jax.models.backbones.resnet import InstanceBatchNorm
from pgfl_jax.pretrained import from_state_dict, read_state_dict, save_state_dict, to_state_dict
from studies.pytorch.random_weights import draw_batch, draw_variables
from tests.networks import small_networks, small_twins

torch = pytest.importorskip("torch")
torch_model = importlib.import_module("pgfl_jax.export.torch_model")
compare, losses, models, parity, report = (
    importlib.import_module(f"studies.pytorch.{name}")
    for name in ("compare", "losses", "models", "parity", "report")
)

SMALL = {"data.height": 32, "data.width": 16}


@pytest.fixture
def drawn_batches(monkeypatch):
    """Replaces the pipeline's batches by random ones."""

    def batches(config, count):
        assert (config.data.height, config.data.width) == (32, 16)
        return [draw_batch(seed) for seed in range(count)]

    monkeypatch.setattr(parity, "real_batches", batches)
    monkeypatch.setattr(parity, "ALL_ON", parity.ALL_ON | SMALL)


def test_a_planted_error_fails(drawn_batches, monkeypatch, tmp_path, capsys):
    """An error of 1e-3 in one loss of the twin."""
    honest = losses.logit_kd
    monkeypatch.setattr(losses, "logit_kd", lambda *a, **k: 1.001 * honest(*a, **k))
    monkeypatch.setattr(parity, "VARIANTS", {})
    chosen = SimpleNamespace(part=["variants"], data_dir="data", out=str(tmp_path))
    monkeypatch.setattr(parity, "FLAGS", chosen)

    assert parity.main([]) == 1

    assert "FAILED" in capsys.readouterr().out
    assert "FAILED" in (tmp_path / "parity.md").read_text()
    figures = json.loads((tmp_path / "parity.json").read_text())["figures"]
    failed = {(figure["name"], figure["where"]) for figure in figures if not figure["ok"]}
    assert {name for name, _ in failed} == {"loss terms", "gradients"}
    assert {where[:8] for name, where in failed if name == "loss terms"} == {"kd_logit"}


@pytest.mark.slow
def test_a_rounding_of_the_start_grows_like_the_difference_between_frameworks(
    drawn_batches, monkeypatch, tmp_path, capsys
):
    """Two steps of the small network, from the command to the plot."""
    monkeypatch.setattr(parity, "FEW", SMALL)
    monkeypatch.setattr(parity, "STEPS", 2)
    chosen = SimpleNamespace(part=["rounding"], data_dir="data", out=str(tmp_path))
    monkeypatch.setattr(parity, "FLAGS", chosen)

    assert parity.main([]) == 0

    (curves,) = json.loads((tmp_path / "parity.json").read_text())["curves"].values()
    assert len(curves) == 2
    for values in curves.values():
        # A rounding is 1e-16 of a weight; the first step of Adam divides it by small gradients.
        assert len(values) == 2 and all(1e-16 < value < 1e-7 for value in values)
    assert len(capsys.readouterr().err.splitlines()) == 3
    assert (tmp_path / "parity.png").read_bytes().startswith(b"\x89PNG")


def test_nan_is_above_every_bound():
    found = report.Parity()
    found.worst("section", "name", {"a": 1.0, "b": float("nan")}, 10)
    assert not found.figures[0].ok and found.figures[0].where == "b"


def test_an_infinite_bound_is_never_kept():
    assert not report.Figure("section", "", "name", 1e-9, float("inf")).ok


def test_zero_is_compared_exactly():
    assert compare.relative(np.zeros(3), np.zeros(3)) == 0
    assert compare.relative(np.full(3, 1e-30), np.zeros(3)) == float("inf")
    with pytest.raises(ValueError, match="shapes"):
        compare.relative(np.zeros(3), np.zeros((3, 1, 2)))


def test_the_running_variance_is_biased():
    x = torch.randn(4, 3, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours, theirs = torch_model.BatchNorm(3).double(), torch.nn.BatchNorm2d(3).double()
    for _ in range(2):
        torch.testing.assert_close(ours(x), theirs(x))
    biased = x.var((0, 2, 3), correction=0)
    torch.testing.assert_close(ours.running_var, 0.81 + 0.19 * biased)
    torch.testing.assert_close(theirs.running_var, 0.81 + 0.19 * biased * 40 / 39)


@small_networks()
@pytest.mark.parametrize("backbone", ["resnet8", "vit", "swin"])
def test_initial_weights_are_drawn_from_the_same_distributions(backbone):
    network = {"model.pooling": "parts", "model.backbone": backbone}
    config = parity.make_config("data", **SMALL, **network)
    experiment = Experiment.create(config, num_identities=64, num_images=64)
    variables = experiment.init_state(make_mesh(jax.devices()[:1]))
    variables = {"params": variables.params, "batch_stats": variables.batch_stats}
    ours = compare.to_arrays(variables, 64)
    torch.manual_seed(0)
    with small_twins():
        twin = compare.fresh_twin(experiment).state_dict()
    assert ours.keys() == {name for name in twin if not name.endswith("num_batches_tracked")}
    for name, value in ours.items():
        assert value.shape == tuple(twin[name].shape), name
        # The standard deviation of n values is known to about 1 / √(2 n).
        spread = twin[name].std(correction=0).item()
        if not spread:  # biases and scales, and the layer that predicts the maps
            np.testing.assert_array_equal(value, twin[name], err_msg=name)
            continue
        assert np.std(value) == pytest.approx(spread, rel=4 / np.sqrt(value.size)), name
        assert np.mean(value) == pytest.approx(
            twin[name].mean().item(), abs=6 * spread / np.sqrt(value.size)
        ), name


def test_instance_and_batch_norm_side_by_side_in_training():
    """IBN-a: output, gradients and running statistics. A whole network would compile for long."""
    ours, theirs = InstanceBatchNorm(use_running_average=False), torch_model.InstanceBatchNorm(6)
    rng = np.random.default_rng(0)
    x, direction = rng.normal(1, 2, (2, 4, 5, 3, 6))
    affine = {kind: rng.normal(1, 0.5, (2, 3)) for kind in ("IN", "BN")}
    params = {kind: {"scale": x[0], "bias": x[1]} for kind, x in affine.items()}
    statistics = {"BN": {"mean": np.zeros(3), "var": np.ones(3)}}
    with torch.no_grad():
        for kind, values in affine.items():
            getattr(theirs, kind).weight.data = torch.tensor(values[0])
            getattr(theirs, kind).bias.data = torch.tensor(values[1])
    theirs.BN.running_mean, theirs.BN.running_var = torch.zeros(3).double(), torch.ones(3).double()

    def loss(params, x):
        y, updates = ours.apply(
            {"params": params, "batch_stats": statistics}, x, mutable=["batch_stats"]
        )
        return (y * direction).sum(), (y, updates["batch_stats"])

    with jax.enable_x64(True):
        (by_params, by_x), (y, updated) = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, x)
    tensor = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    expected = theirs(tensor)
    (expected * torch.tensor(direction.transpose(0, 3, 1, 2))).sum().backward()

    def same(found, tensor):
        found = np.moveaxis(found, -1, 1) if found.ndim == 4 else found
        assert compare.relative(found, tensor.detach().numpy()) < 1e-12

    same(y, expected)
    same(by_x, tensor.grad)
    for kind in ("IN", "BN"):
        same(by_params[kind]["scale"], getattr(theirs, kind).weight.grad)
        same(by_params[kind]["bias"], getattr(theirs, kind).bias.grad)
    same(updated["BN"]["mean"], theirs.BN.running_mean)
    same(updated["BN"]["var"], theirs.BN.running_var)


@small_networks()
@pytest.mark.parametrize(
    ("backbone", "pooling"),
    [
        *((name, "gap") for name in ("resnet8", "resnet50_ibn_a", "vit", "vit_overlap", "swin")),
        ("vit_clip", "cls"),
    ],
)
def test_evaluation_runs_on_images_alone(backbone, pooling):
    network = {"model.backbone": backbone, "model.pooling": pooling}
    experiment = parity.make_experiment(parity.make_config("data", **SMALL, **network))
    variables, images = draw_variables(experiment, 0, np.float64), draw_batch(0)["images"]
    with jax.enable_x64(True):
        evaluate = jax.jit(lambda v, x: experiment.model.apply(v, x, train=False).main.neck)
        expected = evaluate(variables, images)
    with small_twins():
        twin = compare.make_twin(experiment, variables).eval()
    with torch.no_grad():
        outputs = twin(torch.tensor(images))
    assert outputs.main.logits is None and outputs.parts is None
    assert compare.relative(outputs.main.neck.numpy(), expected) < 1e-10


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_the_twins_weights_go_to_flax_and_back(tmp_path, suffix):
    experiment = parity.make_experiment(parity.make_config("data", **SMALL))
    twin = compare.make_twin(experiment, draw_variables(experiment, 1, np.float32))
    saved = {name: value.numpy() for name, value in twin.state_dict().items()}
    path = tmp_path / f"twin{suffix}"
    if suffix == ".pth":
        torch.save(twin.state_dict(), path)
    else:
        save_state_dict(path, saved)
    variables, used = from_state_dict(
        read_state_dict(path),
        draw_variables(experiment, 2, np.float32),
        experiment.model.num_identities,
    )
    assert (dict(used.missing), dict(used.left_over)) == ({}, {})
    back = to_state_dict(variables, experiment.model.num_identities)
    assert back.keys() == saved.keys()
    for name, value in saved.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)


def test_the_twin_needs_neither_jax_nor_tensorflow():
    """Of pgfl_jax, it shares the source of exported artifacts alone."""
    code = (
        "import sys, studies.pytorch.train_step\n"
        "foreign = {'jax', 'flax', 'optax', 'tensorflow'} & set(sys.modules)\n"
        "ours = {name for name in sys.modules if name.startswith('pgfl_jax')}\n"
        "own = {'pgfl_jax', 'pgfl_jax.export', 'pgfl_jax.export.torch_model'}\n"
        "print(sorted(foreign | (ours ^ own)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.stdout == "[]\n", result.stderr


@pytest.mark.slow  # `make parity` compares such a batch with pgfl_jax, which tests/losses tests
def test_images_without_pose_teach_only_the_main_branch():
    experiment = parity.make_experiment(parity.make_config("data", **SMALL))
    batch = draw_batch(0)
    batch["part_maps"][:], batch["visibility"][:] = 0, 0
    step = compare.twin_step(experiment, draw_variables(experiment, 0, np.float64), batch)
    assert all(not np.any(step.gradients[name]) for name in step.gradients if "parts" in name)
    assert step.terms["id_parts"] == 0 and step.terms["id_main"] > 0
