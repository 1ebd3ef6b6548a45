"""Models with known answers, from the encoded image to the pose file."""

import hashlib
import sys

import cv2
import numpy as np
import onnx.helper
import pytest

from input_pipeline.errors import DataError
from input_pipeline.poses.crop import Preprocessing
from input_pipeline.poses.estimate import estimate_poses
from input_pipeline.poses.model import PoseModel
from pgfl_jax.errors import UserError

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (255.0, 255.0, 255.0)}
JOINT = np.arange(17)
CENTRES = np.stack([5.3 + 1.9 * JOINT, 50.6 - 2.3 * JOINT], axis=1)  # of 64 × 48 cells


def random_inputs(count, height, width):
    return np.random.default_rng(0).normal(size=(count, 3, height, width)).astype(np.float32)


# --- the model -----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", ["N", 4])
def test_heatmaps(batch, constant_model, gaussians):
    path = constant_model({"maps": gaussians(CENTRES, 64, 48)}, (batch, 3, 256, 192))
    model = PoseModel(path)
    assert model.size == (256, 192) and model.batch == (4 if batch == 4 else None)
    positions, confidence = model(random_inputs(3, 256, 192))
    assert positions.shape == (3, 17, 2) and confidence.shape == (3, 17)
    for one in positions:
        np.testing.assert_allclose(one, CENTRES * 4, atol=5e-3)
    udp = PoseModel(path, udp=True)(random_inputs(1, 256, 192))[0]
    np.testing.assert_allclose(udp[0], CENTRES * [191 / 47, 255 / 63], atol=5e-3)


@pytest.mark.parametrize("names", [("simcc_x", "simcc_y"), ("b", "a")])
@pytest.mark.parametrize("swapped", [False, True])
def test_simcc(names, swapped, constant_model):
    x, y = np.zeros((1, 17, 96), np.float32), np.zeros((1, 17, 128), np.float32)
    x[0, JOINT, 4 + 3 * JOINT], y[0, JOINT, 99 - 5 * JOINT] = 0.8, 0.5
    outputs = dict(zip(names, (y, x) if swapped else (x, y), strict=True))
    model = PoseModel(constant_model(outputs, ("N", 3, "H", "W")), (64, 48))
    positions, confidence = model(random_inputs(2, 64, 48))
    expected = np.stack([(4 + 3 * JOINT) / 2, (99 - 5 * JOINT) / 2], axis=1)
    np.testing.assert_array_equal(positions, [expected, expected])
    np.testing.assert_allclose(confidence, 0.5)


def test_half_precision(constant_model, gaussians):
    maps = gaussians(CENTRES, 64, 48).astype(np.float16)
    path = constant_model({"maps": maps}, ("N", 3, 256, 192), kind=onnx.TensorProto.FLOAT16)
    positions, _ = PoseModel(path)(random_inputs(2, 256, 192))
    np.testing.assert_allclose(positions[1], CENTRES * 4, atol=0.02)


def test_the_estimators_name(constant_model, gaussians):
    path = constant_model({"maps": gaussians(CENTRES, 8, 6)}, (1, 3, 64, 48), name="my.onnx")
    assert (
        PoseModel(path).estimator == f"my.onnx {hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"
    )


def outputs(**shapes):
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (outputs(maps=(1, 18, 8, 6)), r"but puts out maps \(2, 18, 8, 6\)"),
        (outputs(maps=(1, 8, 6, 18)), r"but puts out maps \(2, 8, 6, 18\)$"),
        (
            outputs(maps=(1, 8, 6, 17)),
            r"maps \(2, 8, 6, 17\): heat maps with channels last; export them with channels first",
        ),
        (
            outputs(x=(1, 17, 96)),
            r"needs heat maps .* but puts out x \(2, 17, 96\): SimCC scores of one axis; export",
        ),
        (outputs(xyc=(1, 17, 3)), r"xyc \(2, 17, 3\): coordinates; export the model without its d"),
        (outputs(x=(1, 17, 96), y=(1, 16, 128)), r"x \(2, 17, 96\), y \(2, 16, 128\)"),
        (outputs(maps=(1, 17, 8, 6), x=(1, 17, 96)), r"maps \(2, 17, 8, 6\), x \(2, 17, 96\)"),
        (outputs(x=(1, 17, 96), y=(1, 17, 100)), "SimCC scores of 96 and 100 bins do not suit"),
        ({"maps": np.full((1, 17, 8, 6), np.nan, np.float32)}, "its output is not finite"),
    ],
)
def test_other_outputs_are_named(arrays, message, constant_model):
    model = PoseModel(constant_model(arrays, ("N", 3, 64, 48)))
    with pytest.raises(UserError, match=message) as error:
        model(random_inputs(2, 64, 48))
    assert str(error.value).startswith(str(model.path)) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("shape", "size", "message"),
    [
        ((1, 64, 48, 3), None, r"needs 3 channels first, .* has image tensor\(float\) \[1, 64, 48"),
        ((1, 3, 64), None, r"needs one float input \(N, 3, H, W\), but has image"),
        (("N", 3, "H", "W"), None, "its input size is open: give --input-size"),
        (("N", 3, 64, 48), (32, 48), "its input is 64×48: no --input-size"),
    ],
)
def test_other_inputs_are_named(shape, size, message, save_model):
    path = save_model([onnx.helper.make_node("Relu", ["image"], ["maps"])], {}, ["maps"], shape)
    with pytest.raises(UserError, match=message):
        PoseModel(path, size)


def test_a_size_that_the_model_cannot_take_is_named(save_model):
    # The input is added to a 64 × 48 constant, so no other size runs.
    node = onnx.helper.make_node("Add", ["image", "constant"], ["maps"])
    constants = {"constant": np.zeros((1, 3, 64, 48), np.float32)}
    model = PoseModel(save_model([node], constants, ["maps"], ("N", 3, "H", "W")), (32, 48))
    with pytest.raises(UserError, match=r"does not run on \(1, 3, 32, 48\): ") as error:
        model(random_inputs(1, 32, 48))
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_a_model_is_named(tmp_path):
    (tmp_path / "text.onnx").write_text("text")
    with pytest.raises(UserError, match=r"--model=.*text\.onnx: not a model that can be run"):
        PoseModel(tmp_path / "text.onnx")
    with pytest.raises(UserError, match=r"--model=.*no\.onnx: no such file"):
        PoseModel(tmp_path / "no.onnx")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pose.tflite", r"a TensorFlow Lite file, not ONNX: convert it with tf2onnx \(--tflite"),
        ("pose.TFLITE", r"a TensorFlow Lite file, not ONNX"),
        ("pose.pth", r"a PyTorch file, not ONNX: convert it with torch\.onnx\.export"),
    ],
)
def test_a_model_of_another_format_is_named(name, message, tmp_path):
    (tmp_path / name).write_bytes(b"\x1c\x00\x00\x00TFL3" + bytes(99))
    with pytest.raises(UserError, match=message) as error:
        PoseModel(tmp_path / name)
    assert str(error.value).startswith(f"--model={tmp_path / name}: ")
    assert "\n" not in str(error.value)


def test_without_onnxruntime_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"needs onnxruntime: pip install .*\[poses\]"):
        PoseModel(tmp_path / "pose.onnx")


# --- images to poses -----------------------------------------------------------------------------


def blob(height, width, x, y, sigma=4.0):
    """A PNG with a bright Gaussian around (x, y)."""
    rows, columns = np.mgrid[:height, :width]
    grey = 250 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2))
    image = np.repeat(np.rint(grey).astype(np.uint8)[..., None], 3, axis=-1)
    return cv2.imencode(".png", image)[1].tobytes()


@pytest.fixture
def finder(save_model):
    """Makes a model of stride 4 whose heat maps are its input's brightness, joint j's j-fold."""

    def make(batch, height=128, width=96):
        node = onnx.helper.make_node
        nodes = [
            node("ReduceMean", ["image"], ["grey"], axes=[1]),
            # Cell i is input pixel 4 i, as in HRNet.
            node("Slice", ["grey", "starts", "ends", "axes", "steps"], ["cells"]),
            node("Mul", ["cells", "weights"], ["maps"]),
        ]
        constants = {
            "starts": np.array([0, 0]),
            "ends": np.array([9999, 9999]),
            "axes": np.array([2, 3]),
            "steps": np.array([4, 4]),
            "weights": ((JOINT + 1) / 17).astype(np.float32).reshape(1, 17, 1, 1),
        }
        return PoseModel(save_model(nodes, constants, ["maps"], (batch, 3, height, width)))

    return make


PEOPLE = {  # size, and where the blob is
    "a.png": ((128, 64), (20.25, 90.5)),
    "b.png": ((100, 110), (80.0, 30.75)),
    "c.png": ((60, 30), (14.5, 29.5)),
    "d.png": ((200, 90), (60.3, 150.6)),
    "e.png": ((128, 64), (44.0, 40.0)),
}


@pytest.mark.parametrize("batch", ["N", 2, 32])
def test_a_bright_spot_is_found_where_it_is(batch, finder, make_catalog):
    images = {name: blob(*size, *place) for name, (size, place) in PEOPLE.items()}
    sizes = [size for size, _ in PEOPLE.values()]
    cache, undecodable = estimate_poses(
        {"train": make_catalog(images, sizes)},
        finder(batch),
        Preprocessing(128, 96, **PLAIN),
        batch_size=3,
        estimator="finder",
    )
    assert not undecodable and cache.filenames.tolist() == list(PEOPLE)
    expected = np.array([place for _, place in PEOPLE.values()])
    found = cache.keypoints[..., :2]
    np.testing.assert_allclose(found, np.repeat(expected[:, None], 17, 1), atol=0.12)
    np.testing.assert_allclose(  # each joint's map has its own height
        cache.keypoints[..., 2], cache.keypoints[:, -1:, 2] * (JOINT + 1) / 17, rtol=1e-5
    )


def test_an_image_in_two_splits_is_estimated_once(finder, make_catalog):
    model, runs = finder("N"), []
    first, second, third = (blob(128, 64, x, 50) for x in (20, 30, 40))
    catalogs = {
        "gallery": make_catalog({"g1.png": first, "g2.png": second}, [(128, 64)] * 2),
        "query": make_catalog({"q1.png": second, "q2.png": third}, [(128, 64)] * 2),
    }

    def counted(inputs):
        runs.append(len(inputs))
        return model(inputs)

    counted.batch, counted.path = None, model.path
    cache, _ = estimate_poses(
        catalogs, counted, Preprocessing(128, 96, **PLAIN), batch_size=2, estimator="e"
    )
    assert runs == [2, 1]
    assert cache.splits.tolist() == ["gallery", "gallery", "query", "query"]
    assert cache.filenames.tolist() == ["g1.png", "g2.png", "q1.png", "q2.png"]
    np.testing.assert_allclose(cache.keypoints[:, 0, 0], [20, 30, 30, 40], atol=0.1)
    np.testing.assert_array_equal(cache.keypoints[1], cache.keypoints[2])
    assert set(cache.sources) == {"pose.onnx"} and set(cache.estimators) == {"e"}


def test_undecodable_and_empty_images_have_no_pose(finder, make_catalog, boundless_png):
    black = cv2.imencode(".png", np.zeros((128, 64, 3), np.uint8))[1].tobytes()
    images = {"a.png": b"no image", "b.png": black, "c.png": blob(128, 64, 20, 50), "d.png": b""}
    images["e.png"] = boundless_png
    sizes = [(0, 0), (128, 64), (128, 64), (0, 0), (200_000, 200_000)]
    catalogs = {"train": make_catalog(images, sizes)}
    preprocessing = Preprocessing(128, 96, **PLAIN)
    for size in (1, 4):  # including a batch without any images
        cache, undecodable = estimate_poses(
            catalogs, finder("N"), preprocessing, batch_size=size, estimator="e"
        )
        assert undecodable == ["train/a.png", "train/d.png", "train/e.png"]
        assert cache.filenames.tolist() == ["c.png"]
    with pytest.raises(DataError, match=r"pose\.onnx: finds no joint in any image"):
        only = {"train": make_catalog({"b.png": black}, [(128, 64)])}
        estimate_poses(only, finder("N"), preprocessing, batch_size=1, estimator="e")
