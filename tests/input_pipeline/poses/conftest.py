"""People, images and pose models with known answers."""

import hashlib
import json
import struct
import zlib

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import pytest

from input_pipeline.catalog import Catalog
from input_pipeline.keypoints import JOINTS
from input_pipeline.poses.images import Images

# The orders in the tools' documentation, with their names.
OPENPOSE_18 = (
    "Nose Neck RShoulder RElbow RWrist LShoulder LElbow LWrist RHip RKnee RAnkle LHip LKnee LAnkle "
    "REye LEye REar LEar"
)
OPENPOSE_25 = (
    "Nose Neck RShoulder RElbow RWrist LShoulder LElbow LWrist MidHip RHip RKnee RAnkle LHip LKnee "
    "LAnkle REye LEye REar LEar LBigToe LSmallToe LHeel RBigToe RSmallToe RHeel"
)
COCO_17 = (
    "Nose LEye REye LEar REar LShoulder RShoulder LElbow RElbow LWrist RWrist LHip RHip LKnee "
    "RKnee LAnkle RAnkle"
)
ORDERS = {17: COCO_17.split(), 18: OPENPOSE_18.split(), 25: OPENPOSE_25.split()}


def _joint(word):
    """This project's name for a tool's joint; None for a joint that COCO lacks."""
    for letter, side in (("L", "left_"), ("R", "right_")):
        if word.startswith(letter) and side + word[1:].lower() in JOINTS:
            return side + word[1:].lower()
    return word.lower() if word.lower() in JOINTS else None


@pytest.fixture
def tool_orders():
    """Number of joints → the tools' names for them."""
    return ORDERS


@pytest.fixture
def as_points():
    """``as_points(person, 25)``: (17, 3) keypoints in another tool's order, others made up."""

    def convert(person, count):
        named = dict(zip(JOINTS, np.asarray(person, float).tolist(), strict=True))
        points = [named.get(_joint(word), [901.0, 902.0, 0.9]) for word in ORDERS[count]]
        assert sum(point[0] == 901 for point in points) == count - 17
        return points

    return convert


@pytest.fixture
def as_numbers(as_points):
    """The same as a flat list."""
    return lambda person, count=17: [n for point in as_points(person, count) for n in point]


@pytest.fixture
def make_person():
    """A person with 51 different numbers, so that any swap or shift of joints shows."""

    def make(x=10.0, y=20.0):
        joint = np.arange(17)
        person = np.stack([x + 1.5 * joint, y + 2.25 * joint, (joint + 3) / 20], axis=1)
        return person.astype(np.float32)

    return make


@pytest.fixture
def write_json(tmp_path):
    """``write_json("folder/name.json", value)`` below the test's folder; returns the folder."""

    def write(name, value):
        path = tmp_path / "poses" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return tmp_path / "poses"

    return write


def _digest(content):
    return hashlib.sha256(str(content).encode()).hexdigest()


@pytest.fixture
def boundless_png():
    """A PNG whose header claims 200,000 × 200,000 pixels."""

    def chunk(name, data):
        checksum = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + checksum

    header = struct.pack(">IIBBBBB", 200_000, 200_000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.fixture
def make_images():
    """``make_images(("query", "a.jpg", "content"), ...)``: images of 60 × 50 pixels."""

    def make(*rows, size=(60, 50)):
        splits, filenames, contents = zip(*sorted(rows), strict=True)
        return Images(
            splits=np.array(splits),
            filenames=np.array(filenames),
            sizes=np.tile(size, (len(rows), 1)),
            sha256=np.array([_digest(content) for content in contents]),
        )

    return make


@pytest.fixture
def make_catalog():
    """``make_catalog({"a.png": encoded}, sizes)``."""

    def make(images, sizes):
        encoded = np.empty(len(images), object)
        encoded[:] = list(images.values())
        count = len(images)
        return Catalog(
            images=encoded,
            filenames=np.array(list(images), object),
            identities=np.arange(count),
            cameras=np.arange(count),
            keypoints=np.zeros((count, 17, 3), np.float32),
            image_sizes=np.array(sizes, np.int64),
            occlusion=np.full(count, np.nan, np.float32),
        )

    return make


@pytest.fixture
def save_model(tmp_path):
    """Writes an ONNX graph: ``save_model(nodes, constants, outputs, input_shape)``."""

    def save(nodes, constants, outputs, input_shape, name="pose.onnx", kind=None):
        kind = kind or onnx.TensorProto.FLOAT
        graph = onnx.helper.make_graph(
            nodes,
            "pose",
            [onnx.helper.make_tensor_value_info("image", kind, input_shape)],
            [onnx.helper.make_tensor_value_info(output, kind, None) for output in outputs],
            [onnx.numpy_helper.from_array(value, key) for key, value in constants.items()],
        )
        opset = [onnx.helper.make_opsetid("", 17)]
        model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=9)
        onnx.save(model, tmp_path / name)
        return tmp_path / name

    return save


@pytest.fixture
def constant_model(save_model):
    """A model whose outputs are given arrays (1, …), whatever the images are."""

    def make(arrays, input_shape, **options):
        node = onnx.helper.make_node
        # Mean over everything but the batch, times zero: (N, 1, 1, 1) of zeros to add to.
        nodes = [
            node("ReduceMean", ["image"], ["mean"], axes=[1, 2, 3]),
            node("Mul", ["mean", "nought"], ["zeros4"]),
            node("Squeeze", ["zeros4", "last_axis"], ["zeros3"]),
        ]
        dtype = next(iter(arrays.values())).dtype
        constants = {"nought": np.zeros((), dtype), "last_axis": np.array([3])}
        for name, array in arrays.items():
            constants[f"{name}_value"] = array
            nodes.append(node("Add", [f"zeros{array.ndim}", f"{name}_value"], [name]))
        return save_model(nodes, constants, list(arrays), input_shape, **options)

    return make


@pytest.fixture
def gaussians():
    """(1, 17, h, w) Gaussian heat maps around (17, 2) centres x, y in cells."""

    def make(centres, height, width, sigma=1.7, peak=1.0):
        y, x = np.mgrid[:height, :width]
        squares = (x - centres[:, :1, None]) ** 2 + (y - centres[:, 1:, None]) ** 2
        peak = np.broadcast_to(peak, 17)[:, None, None]
        return (peak * np.exp(-squares / (2 * sigma**2)))[None].astype(np.float32)

    return make
