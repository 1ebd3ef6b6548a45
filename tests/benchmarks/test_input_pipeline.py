import dataclasses
import importlib
import importlib.util
import io
import itertools
import json

import cv2
import numpy as np
import pytest

from benchmarks import input_pipeline as benchmark
from benchmarks.input_pipeline import Turn
from configs import default
from input_pipeline.catalog import Catalog
from input_pipeline.keypoints import FLIP
from pgfl_jax.config import parse_config
from pgfl_jax.errors import UserError
from pgfl_jax.network_input import network_input

torch = pytest.importorskip("torch")
Image = pytest.importorskip("PIL.Image")
torch_loader = importlib.import_module("benchmarks.torch_loader")

MAP_SHAPE = (8, 4)
HEIGHT, WIDTH = 32, 16
OFF = {"flip": 0.0, "pad": 0, "erasing": 0.0}
ON = {"flip": 0.5, "pad": 3, "erasing": 0.5}


def data_config(augment):
    """The default configuration at a small size, with this augmentation."""
    values = default.get_config()
    values.data.update({"height": HEIGHT, "width": WIDTH})
    values.data.update({"identities_per_batch": 4, "images_per_identity": 2})
    values.data.augment.update(augment)
    return parse_config(values).data


def make_catalog():
    """Nine identities with three JPEG images each: larger than the input, equal, and smaller."""
    count, rng = 27, np.random.default_rng(0)
    sizes = np.array([[53, 30], [HEIGHT, WIDTH], [20, 13]])[np.arange(count) % 3]
    images, filenames = np.empty(count, object), np.empty(count, object)
    for i, (height, width) in enumerate(sizes.tolist()):
        noise = rng.integers(0, 256, (4, 2, 3), np.uint8)
        image = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
        images[i] = cv2.imencode(".jpg", image)[1].tobytes()
        filenames[i] = f"{i:02}.jpg"
    keypoints = rng.uniform(0, 1, (count, 17, 3)).astype(np.float32)
    keypoints[..., :2] *= sizes[:, None, ::-1]
    keypoints[5] = 0
    return Catalog(
        images=images,
        filenames=filenames,
        identities=np.arange(count) // 3,
        cameras=np.arange(count) % 3,
        keypoints=keypoints,
        image_sizes=sizes,
        occlusion=np.full(count, np.nan, np.float32),
    )


@pytest.fixture(scope="module")
def catalog():
    return make_catalog()


def test_without_augmentation_both_sides_give_the_same_batches(catalog):
    from input_pipeline.pipeline import train_batches

    config = data_config(OFF)
    loader = torch_loader.train_loader(catalog, config, map_shape=MAP_SHAPE, seed=3, workers=0)
    ours = train_batches(catalog, config, map_shape=MAP_SHAPE, seed=3)
    for batch, other in itertools.islice(zip(ours, loader, strict=False), 5):
        np.testing.assert_array_equal(batch["indices"], other["indices"])
        np.testing.assert_array_equal(batch["labels"], other["labels"])
        difference = network_input(batch, config) - nhwc(other["images"])
        grey_levels = np.asarray(difference) * np.float32(config.std) * 255
        assert np.abs(grey_levels).max() < 2.01  # each side rounds twice: decoding and resizing
        assert np.abs(grey_levels).mean() < 0.3
        maps, visibility = nhwc(other["part_maps"]), other["visibility"].numpy()
        np.testing.assert_allclose(batch["part_maps"], maps, atol=1e-5)
        np.testing.assert_allclose(batch["visibility"], visibility, atol=1e-6)
        assert maps.max() > 0.5
    ours.close()


def nhwc(tensor):
    return tensor.permute(0, 2, 3, 1).numpy()


def test_part_maps_equal_ours_for_any_keypoints():
    from input_pipeline import pose_maps

    rng, config = np.random.default_rng(1), data_config(ON)
    keypoints = rng.uniform(0, 1, (50, 17, 3)).astype(np.float32)
    keypoints[..., :2] = keypoints[..., :2] * 60 - 15  # some outside
    keypoints[0, 5] = keypoints[0, 7]  # a limb without length
    keypoints[1] = 0
    corner = rng.integers(0, 8, (50, 2))
    erased = np.concatenate([corner, corner + rng.integers(0, 20, (50, 2))], axis=1)
    maps, visibility = torch_loader.part_maps(
        torch.from_numpy(keypoints), torch.from_numpy(erased), config, MAP_SHAPE
    )
    expected = pose_maps.part_maps(
        keypoints,
        None,
        erased.astype(np.int32),
        image_shape=(HEIGHT, WIDTH),
        map_shape=MAP_SHAPE,
        sigma=config.pose.sigma,
        threshold=config.pose.threshold,
    )
    np.testing.assert_allclose(nhwc(maps), expected[0], atol=1e-5)
    np.testing.assert_allclose(visibility, expected[1], atol=1e-6)


def coordinate_image():
    """Every pixel encodes its position: red is column + 1, green is row + 1."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[..., 0] = np.arange(WIDTH) + 1
    pixels[..., 1] = np.arange(HEIGHT)[:, None] + 1
    return pixels


def test_augmented_keypoints_stay_on_their_pixels():
    """In an augmented lossless image, each joint's pixel that is left encodes its old position."""
    encoded = io.BytesIO()
    Image.fromarray(coordinate_image()).save(encoded, "PNG")
    images = np.empty(1, object)
    images[0] = encoded.getvalue()
    rng = np.random.default_rng(2)
    places = np.stack([rng.integers(0, WIDTH, 17), rng.integers(0, HEIGHT, 17)], axis=1)
    keypoints = np.concatenate([places, np.ones((17, 1))], axis=1).astype(np.float32)[None]
    catalog = dataclasses.replace(make_catalog(), images=images, keypoints=keypoints)
    config = data_config(ON)
    dataset = torch_loader.TrainImages(catalog, config)
    torch.manual_seed(0)
    hidden, flipped, repeats = 0, 0, 200
    for _ in range(repeats):
        row = dataset[0]
        mean, std = (np.array(values)[:, None, None] for values in (config.mean, config.std))
        normalised = row["images"].numpy()
        pixels = np.where(normalised == 0, 0, np.rint((normalised * std + mean) * 255))
        red, green = pixels[:2]
        mirrored = bool((np.diff(red[red.any(axis=1)], axis=1) == -1).sum() > red.size // 8)
        names = FLIP if mirrored else np.arange(17)
        x, y, confidence = row["keypoints"].T
        top, left, bottom, right = row["erased"].tolist()
        erased = (x >= left) & (x < right) & (y >= top) & (y < bottom)
        seen = (x >= 0) & (x < WIDTH) & (y >= 0) & (y < HEIGHT) & ~erased
        assert (confidence == 1).all()
        for joint in np.flatnonzero(seen):
            place = (int(y[joint]), int(x[joint]))
            assert (red[place], green[place]) == tuple(places[names][joint] + 1)
        hidden += (~seen).sum()
        flipped += mirrored
        gone = {(x, y) for x, y in places} - set(zip(*(pixels[:2].reshape(2, -1) - 1), strict=True))
        assert len(gone) <= (~seen).sum()
    assert 0.4 < flipped / repeats < 0.6
    assert 0.1 < hidden / (17 * repeats) < 0.4
    np.testing.assert_array_equal(catalog.keypoints, keypoints)  # untouched


def test_erasing_takes_the_first_proposal_that_fits():
    # 0.4 · 32 · 16 = 204.8 pixels; aspect 0.3 makes it 8 x 26, too wide; aspect 1/0.3: 26 x 8.
    config = data_config(ON).augment
    wide, high, small = [1.0, 0.0], [1.0, 1.0], [0.0, 0.0]  # the last: 10.24 pixels, 2 x 6
    limits = (HEIGHT, WIDTH)
    assert torch_loader.erasing_size([wide, high, small], limits, config) == (26, 8)
    assert torch_loader.erasing_size([small, high], limits, config) == (2, 6)
    assert torch_loader.erasing_size([wide, wide], limits, config) == (8, 16)


def test_stored_sizes():
    np.testing.assert_array_equal(benchmark.stored_sizes("256x128", 2), [[256, 128]] * 2)
    mixed = benchmark.stored_sizes("mixed", 50)
    assert len(np.unique(mixed, axis=0)) > 40 and (mixed[:, 0] > mixed[:, 1]).all()
    for text in ("256", "axb", "0x5"):
        with pytest.raises(UserError, match=f"--stored={text}"):
            benchmark.stored_sizes(text, 2)


def test_images_stored_at_another_size_keep_content_and_poses(catalog):
    sizes = catalog.image_sizes * 2
    stored = benchmark.store_as(catalog, sizes)
    np.testing.assert_array_equal(stored.image_sizes, sizes)
    for i in range(3):
        was, now = (np.array(Image.open(io.BytesIO(c.images[i]))) for c in (catalog, stored))
        assert now.shape[:2] == tuple(sizes[i])
        halved = now.reshape(was.shape[0], 2, was.shape[1], 2, 3).mean(axis=(1, 3))
        assert np.abs(halved - was).mean() < 4
    # The centre of a pixel becomes the centre of two.
    expected = catalog.keypoints[0, :, :2] * 2 + 0.5
    np.testing.assert_allclose(stored.keypoints[0, :, :2], expected, atol=1e-4)
    assert not stored.keypoints[5].any()  # no pose stays no pose


def test_batches_are_counted_with_the_time_they_took(monkeypatch):
    clock = itertools.count()  # a second passes between any two readings
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: float(next(clock)))
    # Starts at 0 and then reads 1 … 5: four batches are taken before the fifth reading stops it.
    assert benchmark.take_batches(itertools.repeat(None), 5.0) == (4, 5.0)


def test_the_summary_has_the_spread_and_the_ratio_of_medians():
    first = [Turn(30.0, 500.0, 5.0), Turn(90.0, 700.4, 7.4), Turn(60.0, 900.0, 6.0)]
    second = [Turn(20.0, 1.0, 9.0), Turn(25.0, 1.0, 8.0), Turn(10.0, 1.0, 8.0)]
    lines = benchmark.summary({"a": first, "b": second})
    assert lines[0]["images_per_second"] == {"min": 30.0, "median": 60.0, "max": 90.0}
    assert lines[0]["cpu_us_per_image"] == 700
    assert (lines[0]["memory_mib"], lines[1]["memory_mib"]) == (7, 9)
    assert lines[2] == {
        "name": "a / b",
        "ratio_of_medians": 3.0,
        "ratio_per_round": [1.5, 3.6, 6.0],
    }
    assert json.loads(json.dumps(lines)) == lines


def test_memory_counts_this_process():
    before = benchmark.memory_mib()
    held = np.ones(64 * 2**17)  # 64 MiB, written to
    assert 48 < benchmark.memory_mib() - before < 96
    assert held.all()


def test_without_torch_the_error_says_what_to_install(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torch" else found(name)
    )
    with pytest.raises(UserError, match=r"pip install -e '\.\[benchmark\]'"):
        benchmark.main([])
