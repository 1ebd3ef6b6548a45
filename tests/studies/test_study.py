"""The study: its comparisons, and that both sides start and read alike."""

import json

import numpy as np
import pytest

pytest.importorskip("torch", reason="the study needs PyTorch: pip install -e '.[parity]'")

import scipy.stats

from pgfl_jax.errors import UserError
from studies.pytorch import study
from studies.pytorch.random_weights import moved_by_rounding


def _run(seed, mean_ap, *, shift=0.0):
    total = np.linspace(10, 5, 20)
    return {
        "losses": {"total": (total + shift * np.arange(20)).tolist()},
        "scores": {"occluded": {"mAP": mean_ap, "Rank-1": 0.5}},
        "step_seconds": [9.0, *[0.1 + 0.1 * seed] * 19],
        "seconds": 11.0,
        "memory_mib": 1000.0,
        "memory_before_mib": 400.0,
        "initial_weights": f"weights {seed}",
        "batches": f"batches {seed}",
    }


SCORES = {"jax": [0.40, 0.44, 0.42], "torch": [0.41, 0.43, 0.45], "control": [0.42, 0.44, 0.40]}


@pytest.fixture
def runs():
    return {
        seed: {
            side: _run(seed, values[seed], shift=0.01 * (side == "torch"))
            for side, values in SCORES.items()
        }
        for seed in range(3)
    }


def test_differences_are_paired_by_seed(runs):
    score = study.summarise(runs)["scores"]["occluded mAP"]
    ours, theirs = (100 * np.array(SCORES[side]) for side in ("jax", "torch"))
    np.testing.assert_allclose(score["by_seed"]["torch"], theirs)
    expected = scipy.stats.ttest_rel(theirs, ours).confidence_interval(0.95)
    found = score["minus_jax"]["torch"]
    np.testing.assert_allclose([found["low"], found["high"]], expected)
    assert found["mean"] == pytest.approx(1.0)
    assert score["minus_jax"]["control"]["mean"] == pytest.approx(0.0)


def test_curves_and_costs(runs):
    summary = study.summarise(runs)
    # After step 20 the losses are 5 and 5 + 0.01 · 19.
    assert summary["loss_apart"]["torch"][20] == pytest.approx(0.19 / 5)
    assert set(summary["loss_apart"]["control"].values()) == {0.0}
    # The first step, which compiles, is reported separately.
    assert summary["costs"]["jax"]["step_ms"] == pytest.approx(200)
    assert summary["costs"]["jax"]["first_step_s"] == 9.0
    table = study.markdown(summary, 3)
    assert "| occluded mAP | 42.0 ± 2.0 | 43.0 ± 2.0 | +1.00 (" in table


def test_runs_are_kept_and_must_start_alike(runs, tiny_config, tmp_path, monkeypatch):
    measured = []

    def measure(side, seed, path):
        measured.append((side, seed))
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(runs[seed][side]))

    monkeypatch.setattr(study, "_measure_apart", measure)
    monkeypatch.setattr(study, "source_commit", lambda: "1234")
    config = tiny_config()
    first = study.collect(config, tmp_path, 2)
    assert measured == [(s, 0) for s in ("jax", "torch", "control")] + [
        (s, 1) for s in ("torch", "control", "jax")
    ]
    assert study.collect(config, tmp_path, 2) == first and len(measured) == 6
    study.collect(tiny_config(**{"optim.weight_decay": 0.1}), tmp_path, 2)
    assert len(measured) == 12  # another training
    monkeypatch.setattr(study, "source_commit", lambda: "1234+changes")
    for _ in range(2):
        study.collect(config, tmp_path, 2)
    assert len(measured) == 24  # uncommitted changes are never trusted
    monkeypatch.setattr(study, "source_commit", lambda: "1234")
    runs[2]["torch"]["batches"] = "others"
    with pytest.raises(UserError, match="seed 2: the sides differ in batches"):
        study.collect(config, tmp_path, 3)


@pytest.mark.parametrize("bits", [32, 64])
def test_the_control_moves_every_value_by_one_rounding(bits):
    values = np.array([1.0, -2.0, 1e-30, 0.0], f"float{bits}")
    moved = moved_by_rounding({"a": values}, 0)["a"]
    apart = np.abs(values.view(f"int{bits}") - moved.view(f"int{bits}"))
    assert apart.tolist() == [1, 1, 1, 0]


@pytest.mark.slow
def test_both_sides_train_alike(tiny_config):
    config = tiny_config(**{"train.epochs": 1.25})  # 10 steps
    ours, theirs = (study.measure(config, side) for side in ("jax", "torch"))
    assert ours["initial_weights"] == theirs["initial_weights"]
    assert ours["batches"] == theirs["batches"]
    assert ours["losses"].keys() == theirs["losses"].keys()
    for name, values in ours["losses"].items():
        assert len(values) == 10
        # Float32 sums over a network of eight layers; then ReLUs and triplets amplify.
        assert theirs["losses"][name][0] == pytest.approx(values[0], rel=1e-4, abs=1e-6)
    assert study.apart(theirs, ours)[-1] < 1e-2
    for protocol, scores in ours["scores"].items():
        assert theirs["scores"][protocol]["mAP"] == pytest.approx(scores["mAP"], abs=0.1)


def test_options_it_does_not_cover_are_refused(tiny_config):
    with pytest.raises(UserError, match=r"config\.optim\.ema_decay = 0\.9: the study only compare"):
        study.check(tiny_config(**{"optim.ema_decay": 0.9}))
