import dataclasses
import itertools
import pathlib
import subprocess
import sys

import cv2
import numpy as np
import pytest

from input_pipeline.catalog import Catalog
from input_pipeline.errors import DataError
from input_pipeline.pipeline import evaluation_batch_size, evaluation_batches, train_batches
from input_pipeline.pose_maps import part_maps
from pgfl_jax.config import AugmentConfig, DataConfig, PoseConfig

MAP_SHAPE = (8, 4)
CONFIG = DataConfig(
    dataset="",
    data_dir="",
    manual_dir="",
    memory_gib=0.0,
    height=32,
    width=16,
    mean=(0.4, 0.5, 0.6),
    std=(0.2, 0.3, 0.25),
    identities_per_batch=4,
    images_per_identity=2,
    pose=PoseConfig(source="annotated", files=(), threshold=0.2, sigma=0.05),
    augment=AugmentConfig(
        flip=0.5, pad=2, erasing=0.5, erasing_area=(0.02, 0.4), erasing_aspect=0.3
    ),
)


def make_catalog():
    """Nine identities with three images each; each image has one colour, and sizes differ."""
    count, rng = 27, np.random.default_rng(0)
    sizes = np.array([[32, 16], [40, 20], [24, 15]])[np.arange(count) % 3]
    images, filenames = np.empty(count, object), np.empty(count, object)
    for i, (height, width) in enumerate(sizes):
        image = np.full((height, width, 3), colour(i), np.uint8)
        images[i] = cv2.imencode(".png" if i % 2 else ".jpg", image)[1].tobytes()
        filenames[i] = f"{i:02}.jpg"
    keypoints = rng.uniform(0, 1, (count, 17, 3)).astype(np.float32)
    keypoints[..., :2] *= sizes[:, None, ::-1]
    keypoints[5] = 0
    return Catalog(
        images=images,
        filenames=filenames,
        identities=np.arange(count) // 3 + 100,
        cameras=np.arange(count) % 3,
        keypoints=keypoints,
        image_sizes=sizes,
        occlusion=np.full(count, np.nan, np.float32),
    )


@pytest.fixture(scope="module")
def catalog():
    return make_catalog()


def colour(i):
    return 60 + 5 * i


def train(catalog, steps, **options):
    batches = train_batches(catalog, CONFIG, map_shape=MAP_SHAPE, **{"seed": 7, **options})
    taken = list(itertools.islice(batches, steps))
    batches.close()
    return taken


def assert_equal(batch, other):
    assert batch.keys() == other.keys()
    for name in batch:
        np.testing.assert_array_equal(batch[name], other[name], err_msg=name)


def test_a_training_batch_is_complete(catalog):
    (batch,) = train(catalog, 1)
    assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == {
        "images": ((8, 32, 16, 3), "uint8"),
        "erased": ((8, 4), "int32"),
        "labels": ((8,), "int32"),
        "part_maps": ((8, 8, 4, 8), "float32"),
        "visibility": ((8, 8), "float32"),
        "indices": ((8,), "int32"),
    }
    np.testing.assert_array_equal(batch["labels"], catalog.labels[batch["indices"]])
    np.testing.assert_array_equal(batch["labels"][::2], batch["labels"][1::2])
    assert len(set(batch["labels"])) == 4


def test_images_belong_to_their_indices(catalog):
    for batch in train(catalog, 3):
        red = batch["images"][..., 0].astype(int)
        own = np.abs(red - colour(batch["indices"])[:, None, None]) < 2
        assert own.any(axis=(1, 2)).all()
        assert (own | (red == 0)).all()  # the padding is black
        top, left, bottom, right = batch["erased"].T
        assert (top >= 0).all() and (top <= bottom).all() and (bottom <= 32).all()
        assert (left >= 0).all() and (left <= right).all() and (right <= 16).all()


def test_resuming_gives_the_remaining_batches(catalog):
    straight = train(catalog, 7)
    for batch, other in zip(train(catalog, 3, start_step=4), straight[4:], strict=True):
        assert_equal(batch, other)
    assert (train(catalog, 1, seed=8)[0]["indices"] != straight[0]["indices"]).any()


def with_given_maps(catalog):
    """Images 1, 4, 7 … have part maps instead of keypoints, on a different grid."""
    maps = np.random.default_rng(0).integers(0, 256, (27, 6, 3, 8), np.uint8)
    keypoints = catalog.keypoints.copy()
    given = np.arange(27) % 3 == 1
    maps[~given], keypoints[given] = 0, 0
    return dataclasses.replace(catalog, part_maps=maps, keypoints=keypoints)


@pytest.mark.parametrize("processes", [2, 4, 8])
@pytest.mark.parametrize("given", [False, True], ids=["drawn", "given"])
def test_the_slices_of_the_processes_make_up_the_batch(catalog, processes, given):
    catalog = with_given_maps(catalog) if given else catalog
    whole = train(catalog, 4)
    slices = [train(catalog, 4, process_index=i, process_count=processes) for i in range(processes)]
    for batch, parts in zip(whole, zip(*slices, strict=True), strict=True):
        assert_equal(batch, {k: np.concatenate([part[k] for part in parts]) for k in batch})


def test_the_processes_share_each_part_of_a_batch(catalog):
    (whole,) = train(catalog, 1)
    slices = [
        next(iter(train(catalog, 1, parts=2, process_index=i, process_count=2))) for i in (0, 1)
    ]
    for name, rows in whole.items():
        # Of 8 rows in two parts, process 0 takes 0 and 1 of the first, 4 and 5 of the second.
        np.testing.assert_array_equal(slices[0][name], rows[[0, 1, 4, 5]])
        np.testing.assert_array_equal(slices[1][name], rows[[2, 3, 6, 7]])


def test_an_image_is_augmented_differently_each_time(catalog):
    seen = {}
    for batch in train(catalog, 20):
        for index, image in zip(batch["indices"], batch["images"], strict=True):
            seen.setdefault(int(index), []).append(image)
    # Few variants of a plain image look alike; most must differ.
    assert np.mean([len(np.unique(np.stack(v), axis=0)) / len(v) for v in seen.values()]) > 0.8


def test_no_poses_give_zero_maps(catalog):
    (batch,) = train(catalog.without_poses(), 1)
    assert not batch["part_maps"].any() and not batch["visibility"].any()


def evaluate(catalog, batch_size, **options):
    read = evaluation_batches(
        catalog, CONFIG, map_shape=MAP_SHAPE, batch_size=batch_size, **options
    )
    return list(read())


def test_evaluation_goes_through_the_catalog_once_in_order(catalog):
    batches = evaluate(catalog, 8)
    assert len(batches) == 4
    valid = np.concatenate([batch["valid"] for batch in batches])
    np.testing.assert_array_equal(valid, [1] * 27 + [0] * 5)
    joined = {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}
    np.testing.assert_array_equal(joined["indices"], [*range(27), 0, 0, 0, 0, 0])
    expected = np.repeat(colour(np.arange(27))[:, None], 3, axis=1)
    np.testing.assert_allclose(joined["images"][:27, 16, 8], expected, atol=2)  # JPEG rounds
    for name in ("images", "part_maps", "visibility"):
        assert not joined[name][27:].any(), name
    assert set(joined) == {"images", "part_maps", "visibility", "indices", "valid"}


def test_evaluation_without_poses_reads_the_same_images(catalog):
    read = evaluation_batches(catalog, CONFIG, map_shape=None, batch_size=8)
    for images, whole in zip(read(), evaluate(catalog, 8), strict=True):
        assert set(images) == {"images", "indices", "valid"}
        assert_equal(images, {name: whole[name] for name in images})


def test_every_evaluation_reads_the_same_from_the_beginning(catalog):
    read = evaluation_batches(catalog, CONFIG, map_shape=MAP_SHAPE, batch_size=8)
    next(left := read())  # an abandoned evaluation
    first, second = list(read()), list(read())
    left.close()
    assert len(first) == len(second) == 4
    for batch, other in zip(first, second, strict=True):
        assert_equal(batch, other)


def test_evaluation_maps_are_those_of_the_resized_pose(catalog):
    (batch,) = evaluate(catalog, 27)
    keypoints = catalog.keypoints.copy()
    scale = np.array([16, 32]) / catalog.image_sizes[:, None, ::-1]
    keypoints[..., :2] = (keypoints[..., :2] + 0.5) * scale - 0.5
    maps, visibility = part_maps(
        keypoints, image_shape=(32, 16), map_shape=MAP_SHAPE, sigma=0.05, threshold=0.2
    )
    np.testing.assert_allclose(batch["part_maps"], maps, atol=1e-5)
    np.testing.assert_allclose(batch["visibility"], visibility)
    assert not batch["visibility"][5].any()


def test_given_maps_serve_images_without_keypoints(catalog):
    maps = np.zeros((27, *MAP_SHAPE, 8), np.uint8)
    maps[5, 3, 2] = [255, 51, 26, 0, 102, 0, 0, 0]  # image 5 has no keypoints
    (batch,) = evaluate(dataclasses.replace(catalog, part_maps=maps), 27)
    (without,) = evaluate(catalog, 27)
    expected = without["part_maps"].copy()
    expected[5, 3, 2] = [1, 0.2, 0, 0, 0.4, 0, 0, 0]  # 26 / 255 is below the threshold
    np.testing.assert_allclose(batch["part_maps"], expected, atol=1e-6)
    np.testing.assert_allclose(batch["visibility"][5], expected[5].max(axis=(0, 1)), atol=1e-6)
    np.testing.assert_array_equal(batch["visibility"][:5], without["visibility"][:5])
    (trained,) = train(dataclasses.replace(catalog, part_maps=maps), 1)
    assert trained["part_maps"].shape == (8, *MAP_SHAPE, 8)


def test_evaluation_slices_make_up_the_batch(catalog):
    whole = evaluate(catalog, 20)
    slices = [evaluate(catalog, 20, process_index=i, process_count=4) for i in range(4)]
    assert {len(part) for part in slices} == {2}  # the last process has only padding at the end
    for batch, parts in zip(whole, zip(*slices, strict=True), strict=True):
        assert_equal(batch, {k: np.concatenate([part[k] for part in parts]) for k in batch})


@pytest.mark.parametrize(
    "images, largest, devices, rows",
    [
        (1138, 512, 1, 384),  # 3 batches of 379.3, in steps of 32
        (1138, 512, 48, 384),  # steps of 48
        (1138, 256, 1, 240),  # 5 batches of 227.6, in steps of 16
        (1, 512, 1, 32),
        (512, 512, 8, 512),
        (513, 512, 8, 288),  # 2 batches of 256.5
        (19_732, 256, 1, 256),  # 78 batches of 252.97
        (5, 16, 8, 8),  # one row per device at least
        (9, 16, 8, 16),
        (9, 12, 8, 12),  # never above the largest
    ],
)
def test_a_split_is_cut_into_even_batches(images, largest, devices, rows):
    assert evaluation_batch_size(images, largest, devices) == rows


def test_errors_come_before_the_first_batch(catalog):
    with pytest.raises(DataError, match=r"data.identities_per_batch: a batch of 8 .* 3 processes"):
        train(catalog, 0, process_count=3)
    with pytest.raises(DataError, match=r"eval.batch_size: a batch of 9 .* 2 processes"):
        evaluate(catalog, 9, process_count=2)
    config = dataclasses.replace(CONFIG, identities_per_batch=16)
    with pytest.raises(DataError, match="only 9 identities"):
        train_batches(catalog, config, map_shape=MAP_SHAPE, seed=0)


@pytest.mark.parametrize(
    "damage", [lambda image: b"nonsense", lambda image: image[:-20], lambda image: b""]
)
def test_a_corrupt_image_is_named(catalog, damage):
    images = catalog.images.copy()
    images[4] = damage(images[4])
    broken = dataclasses.replace(catalog, images=images)
    with pytest.raises(DataError, match=r"04\.jpg: the image cannot be decoded; replace or remove"):
        train(broken, 20)
    with pytest.raises(DataError, match=r"04\.jpg"):
        evaluate(broken, 8)


def test_iterators_can_be_abandoned_at_any_time(catalog):
    for close in (True, False):
        batches = train_batches(catalog, CONFIG, map_shape=MAP_SHAPE, seed=0)
        next(batches)
        if close:
            batches.close()
            assert next(batches, None) is None


def test_a_process_ends_with_iterators_still_open():
    code = """
import runpy, sys
module = runpy.run_path(sys.argv[1])
catalog, config = module["make_catalog"](), module["CONFIG"]
batches = module["train_batches"](catalog, config, map_shape=(8, 4), seed=0)
others = module["evaluation_batches"](catalog, config, map_shape=(8, 4), batch_size=4)()
next(batches), next(others)
raise SystemExit("left")
"""
    done = subprocess.run(
        [sys.executable, "-c", code, __file__],
        capture_output=True,
        cwd=pathlib.Path(__file__).parents[2],
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert "left" in done.stderr and "Exception" not in done.stderr
