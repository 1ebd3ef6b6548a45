"""Writes tests/golden: the twin's values, for tests that run without PyTorch.

    python -m studies.pytorch.golden

The twin computes in float64. ``losses.npz`` holds every loss in all its variants, with inputs and
gradients. ``network.npz`` holds one step of a ResNet-8 with three branches on tiny images; its
weights are not stored, since studies/pytorch/random_weights.py reproduces them.
tests/test_golden.py compares.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from pgfl_jax.config import Config
from pgfl_jax.experiment import Experiment
from studies.pytorch.compare import tiny_config, twin_step
from studies.pytorch.losses import total_loss
from studies.pytorch.models import BranchOutputs, PGFLOutputs
from studies.pytorch.random_weights import Noise, draw_batch, draw_variables

FOLDER = Path("tests/golden")
SEED = 5
IDENTITIES, IMAGES = 10, 16  # 10 classes, and epochs of 2 steps with 8 images each

ALL_ON = {
    "loss.logit_kd": 1.0,
    "loss.interaction": 0.5,
    "loss.interaction_variant": "cross_classifier",
    "loss.teachers": "both",
    "data.height": 32,
    "data.width": 16,
    "data.identities_per_batch": 4,
    "data.images_per_identity": 2,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "all": {},
    "soft_margin": {"loss.soft_margin": True},
    "cosine": {"loss.alignment_variant": "cosine"},
    "cross_triplet": {"loss.interaction_variant": "cross_triplet"},
    "no_smoothing": {"loss.smoothing": 0.0, "loss.temperature": 1.0},
    "kd_ramp": {"loss.kd_start": 0.5, "loss.kd_ramp": 4.0},
    "one_teacher": {"loss.teachers": "parts"},
}
EPOCH = 1.5  # a quarter into the ramp of the variant "kd_ramp"


def make_config(**changes: Any) -> Config:
    """The tiny configuration with every loss on and with ``changes``."""
    return tiny_config({**ALL_ON, **changes})


def draw_outputs(noise: Noise) -> dict[str, np.ndarray]:
    """Random outputs of a network for the batch of :func:`draw_batch`, channels last, by name."""
    outputs = {"features": np.abs(noise(8, 4, 2, 8))}
    for branch in ("main", "foreground", "parts"):
        outputs |= {f"{branch}.embedding": noise(8, 16), f"{branch}.neck": noise(8, 16)}
        outputs[f"{branch}.logits"] = noise(8, IDENTITIES)
    outputs |= {f"cross.{i}": noise(8, IDENTITIES) for i in range(2)}
    return outputs | {"maps": noise(8, 4, 2, 8)}


def loss_values() -> dict[str, np.ndarray]:
    """For every variant, the terms and the total's gradients in the order of the inputs."""
    drawn, batch = draw_outputs(Noise(SEED)), draw_batch(SEED)
    del batch["images"]
    found = {f"in.{name}": value for name, value in (drawn | batch).items()}
    for variant, changes in VARIANTS.items():
        config = make_config(**changes).loss
        leaves = {name: torch.tensor(value, requires_grad=True) for name, value in drawn.items()}
        branches = [
            BranchOutputs(*(leaves[f"{name}.{field}"] for field in BranchOutputs._fields))
            for name in ("main", "foreground", "parts")
        ]
        features, maps = (leaves[name].permute(0, 3, 1, 2) for name in ("features", "maps"))
        outputs = PGFLOutputs(features, *branches, (leaves["cross.0"], leaves["cross.1"]), maps)
        tensors = {name: torch.tensor(value) for name, value in batch.items()}
        tensors["labels"] = tensors["labels"].long()
        total, terms = total_loss(outputs, tensors, config, epoch=EPOCH)
        total.backward()
        found[f"{variant}.terms"] = _vector({name: value.detach() for name, value in terms.items()})
        gradients = [
            torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves.values()
        ]
        found[f"{variant}.gradients"] = torch.cat([value.ravel() for value in gradients]).numpy()
    return found


def _vector(values: Mapping[str, Any]) -> Float[np.ndarray, " names"]:
    """The numbers, sorted by name."""
    return np.array([float(values[name]) for name in sorted(values)])


def network_values() -> dict[str, np.ndarray]:
    """One step of a network: logits, terms, and the norms of gradients and statistics."""
    experiment = Experiment.create(make_config(), num_identities=IDENTITIES, num_images=IMAGES)
    step = twin_step(experiment, draw_variables(experiment, SEED, np.float64), draw_batch(SEED))
    logits = {name: x for name, x in step.outputs.items() if name.endswith("logits")}
    norms = {name: np.linalg.norm(gradient) for name, gradient in step.gradients.items()}
    sizes = {name: np.linalg.norm(values) for name, values in step.statistics.items()}
    return logits | {
        "terms": _vector(step.terms),
        "gradient_norms": _vector(norms),
        "statistic_norms": _vector(sizes),
    }


def main() -> None:
    """Write both files, each with its origin and the configurations of its variants."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, values in (("losses", loss_values()), ("network", network_values())):
        origin = {
            "script": "studies/pytorch/golden.py",
            "torch": torch.__version__,
            "seed": SEED,
            "epoch": EPOCH if name == "losses" else 0.0,
            "identities": IDENTITIES,
            "variants": {
                variant: dataclasses.asdict(make_config(**changes).loss)
                for variant, changes in VARIANTS.items()
            },
        }
        np.savez_compressed(FOLDER / f"{name}.npz", origin=np.array(json.dumps(origin)), **values)


if __name__ == "__main__":
    main()
