"""The embedded set is hard in the right way: what is easy, what is learnt, what pose adds.

A reduced set: all of the demo's training images, 35 of its test people, half of its schedule.
The full figures are in docs/results.md. The training takes five minutes on two cores, so it is run
by hand, ``pytest -m slow``, when the renderer or the network changes.
"""

import json

import cv2
import jax
import numpy as np
import pytest

from configs import synthetic_demo
from input_pipeline.builders import prepared_builder
from input_pipeline.catalog import read_catalog
from input_pipeline.from_config import evaluation_split, training_data
from input_pipeline.synthetic.plan import plan_split
from input_pipeline.synthetic.render import render
from input_pipeline.synthetic.settings import PRESETS
from pgfl_jax.config import parse_config
from pgfl_jax.retrieval.metrics import evaluate_retrieval
from pgfl_jax.retrieval.protocols import EvaluationData, Protocol
from pgfl_jax.train import train

FIRST = PRESETS["demo"].train_identities
TESTED = range(FIRST, FIRST + 35)


@pytest.fixture(scope="module")
def reduced(tmp_path_factory):
    """Builder of the demo set, and the reduced evaluation splits."""
    data_dir = str(tmp_path_factory.mktemp("data"))
    builder = prepared_builder("synthetic_occluded_reid/demo", data_dir)
    catalogs = {}
    for name in ("query", "query_holistic", "gallery"):
        catalog = read_catalog(builder, name)
        catalogs[name] = catalog.select(np.isin(catalog.identities, TESTED))
    return builder, catalogs, data_dir


def _trained(reduced, workdir, **changes):
    """Scores by name, "occluded/main/mAP" and so on, of the untrained and the trained network."""
    builder, catalogs, data_dir = reduced
    values = synthetic_demo.get_config()
    values.update_from_flattened_dict(
        {"train.epochs": 12.0, "train.eval_every": 10_000, "eval.batch_size": 140,
         "data.data_dir": data_dir, **changes}
    )  # fmt: skip
    config = parse_config(values)
    data = EvaluationData(
        splits={name: evaluation_split(catalog, config) for name, catalog in catalogs.items()},
        protocols=[
            Protocol(name, "reduced", query, "gallery") for name, query in builder.PROTOCOLS.items()
        ],
    )
    train(config, workdir, training_data(config), data, devices=jax.devices()[:1])
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    untrained, trained = (line for line in lines if "occluded/main/mAP" in line)
    return untrained, trained


def _histogram(image):
    """Colours of six horizontal stripes, 8 hues x 4 saturations x 4 values each."""
    pixels = cv2.cvtColor(cv2.imdecode(np.frombuffer(image, np.uint8), 1), cv2.COLOR_BGR2HSV)
    stripes = np.array_split(pixels, 6)
    histograms = [
        cv2.calcHist([s], [0, 1, 2], None, [8, 4, 4], [0, 180, 0, 256, 0, 256]) for s in stripes
    ]
    features = np.concatenate([h.ravel() / h.sum() for h in histograms])
    return np.sqrt(features)


def test_colours_alone_find_nobody():
    preset = PRESETS["demo"]
    features, people, cameras = {}, {}, {}
    for split in ("query", "query_holistic", "gallery"):
        shots = [shot for shot in plan_split(preset, split) if shot.person in TESTED]
        features[split] = np.stack([_histogram(render(preset, shot).jpeg) for shot in shots])
        people[split] = np.array([shot.person for shot in shots])
        cameras[split] = np.array([shot.camera for shot in shots])
    for query in ("query", "query_holistic"):
        assert set(people[query]) == set(TESTED)
        metrics = evaluate_retrieval(
            -features[query] @ features["gallery"].T,
            people[query], people["gallery"], cameras[query], cameras["gallery"],
        )  # fmt: skip
        assert metrics.mean_ap < 0.20


@pytest.mark.slow
def test_what_is_learnt_and_what_pose_adds(reduced, tmp_path):
    untrained, baseline = _trained(reduced, tmp_path / "mb", **{"model.pose_branches": False})
    _, pgfl = _trained(
        reduced, tmp_path / "pgfl", **{"eval.embeddings": ("main", "foreground", "parts")}
    )
    print(untrained, baseline, pgfl, sep="\n")
    for protocol in ("occluded", "holistic"):
        assert untrained[f"{protocol}/main/mAP"] < 0.20
    occluded, holistic = baseline["occluded/main/mAP"], baseline["holistic/main/mAP"]
    assert 0.20 < occluded < 0.60
    assert holistic > occluded + 0.12
    for teacher in ("foreground", "parts"):
        assert pgfl[f"occluded/{teacher}/mAP"] > occluded + 0.08
    assert pgfl["occluded/main/mAP"] > occluded + 0.04
