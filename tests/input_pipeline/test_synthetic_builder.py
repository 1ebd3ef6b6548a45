"""The TFDS builder of the synthetic data set, and how builders are found by name."""

import dataclasses

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from input_pipeline import builders
from input_pipeline.builders.synthetic_occluded_reid import (
    synthetic_occluded_reid_dataset_builder as module,
)
from input_pipeline.catalog import read_catalog
from input_pipeline.synthetic import plan
from input_pipeline.synthetic.render import render
from input_pipeline.synthetic.settings import PRESETS, KeypointNoise

TINY = PRESETS["tiny"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    builder = builders.load_builder(
        "synthetic_occluded_reid/tiny", str(tmp_path_factory.mktemp("data"))
    )
    builder.download_and_prepare()
    return builder


def test_prepared_splits_are_the_planned_ones(tiny):
    assert tiny.name == "synthetic_occluded_reid"
    assert set(tiny.info.splits) == set(plan.SPLITS)
    for split in plan.SPLITS:
        stored = {e["filename"].decode(): e for e in tfds.as_numpy(tiny.as_dataset(split=split))}
        shots = plan.plan_split(TINY, split)
        assert set(stored) == {shot.filename for shot in shots}
        for shot in shots:
            example = stored[shot.filename]
            assert (example["identity"], example["camera"]) == (shot.person, shot.camera)
            assert (example["occlusion"] > 0) == shot.occluded


def test_stored_examples_are_the_rendered_ones(tiny):
    skip = tfds.decode.SkipDecoding()
    dataset = tiny.as_dataset(split="query", decoders={"image": skip})
    stored = {e["filename"].decode(): e for e in tfds.as_numpy(dataset)}
    for shot in plan.plan_split(TINY, "query"):
        expected, example = render(TINY, shot), stored[shot.filename]
        assert example["image"] == expected.jpeg  # the camera's own JPEG, not compressed twice
        assert np.array_equal(example["keypoints"], expected.keypoints)
        assert example["occlusion"] == np.float32(expected.occlusion)
        assert example["keypoints"].dtype == np.float32
        image = cv2.imdecode(np.frombuffer(example["image"], np.uint8), cv2.IMREAD_COLOR)
        assert image.shape == (*TINY.image_shape, 3)


def test_preparing_again_reuses_what_is_there(tiny):
    again = builders.load_builder("synthetic_occluded_reid/tiny", str(tiny.data_dir_root))
    assert again.data_path.exists()
    assert again.info.splits["train"].num_examples == TINY.train_images


def test_other_settings_are_kept_apart(tiny):
    config = module.SyntheticConfig(name="mine", preset="tiny", noise=KeypointNoise(std=0.01))
    noisy = module.Builder(config=config, data_dir=str(tiny.data_dir_root))
    assert noisy.data_path != tiny.data_path
    assert not noisy.data_path.exists()
    scene = dataclasses.replace(TINY.scene, shift_x=0.0)
    centred = module.SyntheticConfig(name="mine", preset="tiny", scene=scene)
    assert centred.resolved().scene.shift_x == 0.0
    # Even under one name: the version holds a fingerprint of the settings.
    assert len({centred.version, config.version, tiny.version}) == 3


def test_configs_name_known_presets(tmp_path):
    names = [config.name for config in module.Builder.BUILDER_CONFIGS]
    assert {"tiny", "demo", "benchmark"} <= set(names)
    for config in module.Builder.BUILDER_CONFIGS:
        assert config.preset in PRESETS
        builder = builders.load_builder(f"synthetic_occluded_reid/{config.name}", str(tmp_path))
        assert builder.info.features["image"].shape == (*PRESETS[config.preset].image_shape, 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("synthetic", r"unknown data set 'synthetic'; available: .*synthetic_occluded_reid"),
        ("synthetic_occluded_reid/huge", r"has no config 'huge'; available: tiny, demo, demo_val"),
    ],
)
def test_unknown_names_are_one_line(name, message, tmp_path):
    with pytest.raises(builders.UnknownDatasetError, match=message) as caught:
        builders.load_builder(name, str(tmp_path))
    assert "\n" not in str(caught.value)


def prepare_with_beam(name, data_dir):
    """Prepare under Beam's local runner; returns the builder."""
    builder = builders.load_builder(name, str(data_dir))
    config = tfds.download.DownloadConfig(beam_runner="DirectRunner")
    builder.download_and_prepare(download_config=config)
    return builder


def assert_same(catalog, other):
    assert list(catalog.image_sha256) == list(other.image_sha256)
    for name in ("filenames", "identities", "cameras", "keypoints", "occlusion"):
        np.testing.assert_array_equal(getattr(catalog, name), getattr(other, name), err_msg=name)


@pytest.mark.slow
def test_beam_prepares_the_same_data(tiny, tmp_path):
    other = prepare_with_beam("synthetic_occluded_reid/tiny", tmp_path)
    for split in plan.SPLITS:
        assert_same(read_catalog(other, split), read_catalog(tiny, split))


@pytest.mark.slow
def test_beam_prepares_the_benchmark_set(tmp_path):
    preset = PRESETS["benchmark"]
    builder = prepare_with_beam("synthetic_occluded_reid/benchmark", tmp_path)
    for split in plan.SPLITS:
        shots = plan.plan_split(preset, split)
        catalog = read_catalog(builder, split)
        order = np.argsort([shot.filename for shot in shots])
        assert list(catalog.filenames) == [shots[i].filename for i in order]
        np.testing.assert_array_equal(catalog.identities, [shots[i].person for i in order])
        for i in np.random.default_rng(0).choice(len(shots), 20, replace=False):
            place = np.flatnonzero(order == i)[0]
            assert catalog.images[place] == render(preset, shots[i]).jpeg
