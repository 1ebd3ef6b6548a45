"""One example of the plan: its picture, its pose, and its hidden share."""

import dataclasses
import functools

import cv2
import numpy as np
from jaxtyping import Bool, Float32

from input_pipeline.keypoints import JOINTS
from input_pipeline.synthetic import background
from input_pipeline.synthetic.attributes import Person, draw_people, draw_person
from input_pipeline.synthetic.camera import cameras, shoot
from input_pipeline.synthetic.figure import Figure, draw_figure, pose_figure
from input_pipeline.synthetic.layer import SUPERSAMPLING, new_layer, over
from input_pipeline.synthetic.occluder import Target, draw_occluder, hidden_share
from input_pipeline.synthetic.plan import SPLITS, Shot
from input_pipeline.synthetic.settings import KeypointNoise, Preset, Stream, random_stream
from input_pipeline.synthetic.skeleton import draw_gait, faces_camera

# Ranges of confidence: of visible joints, and of joints that are hidden or turned away.
HIDDEN_BELOW = 0.2
_SEEN, _HIDDEN = (0.75, 1.0), (0.02, 0.15)


@dataclasses.dataclass(frozen=True)
class Render:
    """A finished picture and its annotations.

    Attributes:
        jpeg: the JPEG file.
        keypoints: (17, 3) float32: x, y in pixels of the stored image, confidence in [0, 1].
        occlusion: share of the body inside the image that is hidden, in [0, 1].
        body: (h, w) bool at the supersampled size, true on the body, hidden or not.
        hidden: (h, w) bool at the supersampled size, true where something covers the picture.
    """

    jpeg: bytes
    keypoints: Float32[np.ndarray, "17 3"]
    occlusion: float
    body: Bool[np.ndarray, "height width"]
    hidden: Bool[np.ndarray, "height width"]


@functools.cache
def people(preset: Preset) -> tuple[Person, ...]:
    """All identities of a data set: the training ones, the test ones, the distractors."""
    total = preset.train_identities + max(preset.test_identities, preset.gallery_identities)
    return tuple(draw_people(preset.seed, total))


def _place(person: Person, preset: Preset, pitch: float, rng: np.random.Generator) -> Figure:
    """Put a person into the box as a detector would: off-centre, too large or too small."""
    scene = preset.scene
    rows, columns = (size * SUPERSAMPLING for size in preset.image_shape)
    height = rng.uniform(*scene.person_height) * rows
    x = columns * (0.5 + rng.uniform(-scene.shift_x, scene.shift_x))
    middle = rows * (0.5 + rng.uniform(-scene.shift_y, scene.shift_y))
    return pose_figure(person, draw_gait(rng), pitch, height, (x, middle + 0.5 * height))


def _bystander(target: Figure, preset: Preset, pitch: float, rng: np.random.Generator) -> Figure:
    """A person beside the target, slightly farther from the camera."""
    scene = preset.scene
    height = target.height * rng.uniform(*scene.bystander_height)
    side = rng.choice((-1.0, 1.0)) * rng.uniform(*scene.bystander_offset) * target.height
    ground = target.points["pelvis"][0] + side, target.ground - rng.uniform(0.0, 0.06) * height
    return pose_figure(draw_person(rng), draw_gait(rng), pitch, height, ground)


def _shade_ground(picture: np.ndarray, figure: Figure) -> None:
    """A soft contact shadow under the feet, in place."""
    feet = np.mean([figure.points[f"{side}_ankle"][:2] for side in ("left", "right")], axis=0)
    center = int(feet[0]), int(figure.ground - 0.01 * figure.height)
    axes = int(0.19 * figure.height), int(0.035 * figure.height)
    low, high = center[1] - 2 * axes[1], center[1] + 2 * axes[1]
    low, high = max(low, 0), min(high, picture.shape[1])
    if low >= high:
        return
    shadow = np.zeros((high - low, picture.shape[2]), np.float32)
    cv2.ellipse(shadow, (center[0], center[1] - low), axes, 0, 0, 360, 1.0, -1)
    shadow = cv2.GaussianBlur(shadow, (0, 0), max(axes[1] / 2, 0.5))
    picture[:, low:high] *= 1.0 - 0.45 * shadow


def annotate(
    figure: Figure, hidden: Bool[np.ndarray, "height width"], rng: np.random.Generator
) -> Float32[np.ndarray, "17 3"]:
    """Keypoints of the stored image: low confidence for hidden joints, 0 for those outside.

    Args:
        figure: the target, in supersampled pixels.
        hidden: (h, w) bool, true where something covers the picture.
        rng: for slight variations of the confidences.
    """
    points = np.stack([figure.points[name][:2] for name in JOINTS])
    rows, columns = hidden.shape
    pixel = np.rint(points).astype(int)
    inside = ((points >= -0.5) & (points <= np.array([columns, rows]) - 0.5)).all(axis=1)
    x, y = np.clip(pixel[:, 0], 0, columns - 1), np.clip(pixel[:, 1], 0, rows - 1)
    seen = faces_camera(figure.points, figure.height) & ~hidden[y, x]
    high, low = rng.uniform(*_SEEN, len(points)), rng.uniform(*_HIDDEN, len(points))
    confidence = np.where(seen, high, low) * inside
    stored = (points + 0.5) / SUPERSAMPLING - 0.5
    return np.column_stack([stored, confidence]).astype(np.float32)


def perturb(
    keypoints: Float32[np.ndarray, "17 3"],
    noise: KeypointNoise,
    height: float,
    rng: np.random.Generator,
) -> Float32[np.ndarray, "17 3"]:
    """Keypoints with the errors of an estimator.

    Args:
        keypoints: (17, 3), the truth.
        noise: the kinds and rates of errors.
        height: the person's height in pixels of the stored image.
        rng: this image's annotation stream.
    """
    result = keypoints.copy()
    result[:, :2] += rng.normal(0.0, 1.0, (len(result), 2)) * noise.std * height
    hidden = (result[:, 2] > 0.0) & (result[:, 2] < HIDDEN_BELOW)
    believed = hidden & (rng.random(len(result)) < noise.hallucination)
    result[believed, 2] = rng.uniform(*_SEEN, believed.sum())
    result[rng.random(len(result)) < noise.joint_dropout, 2] = 0.0
    if rng.random() < noise.pose_dropout:
        result[:] = 0.0
    return result


def render(preset: Preset, shot: Shot) -> Render:
    """Draw one picture; a pure function of its arguments.

    Args:
        preset: the data set.
        shot: the picture's entry in the plan.
    """
    key = (SPLITS.index(shot.split), shot.index)
    rng = random_stream(preset.seed, Stream.IMAGE, *key)
    camera = cameras(preset)[shot.camera]
    place = background.canvas(preset, shot.camera)
    picture = background.crop(place, preset.image_shape, rng)
    rows, columns = picture.shape[1:]

    target = _place(people(preset)[shot.person], preset, camera.pitch, rng)
    if rng.random() < preset.scene.bystander_probability:
        bystander = _bystander(target, preset, camera.pitch, rng)
        _draw_person(picture, bystander, camera.light)
    body = _draw_person(picture, target, camera.light)
    hidden = np.zeros((rows, columns), bool)
    occlusion = 0.0
    if shot.occluded:
        goal = Target(body, target.ground, target.height, camera.pitch, camera.light)
        layer = draw_occluder(goal, preset.scene, rng)
        over(picture, layer)
        hidden = layer[3] > 0.5
        occlusion = hidden_share(body, hidden)

    exposure = rng.uniform(-preset.scene.exposure_jitter, preset.scene.exposure_jitter)
    jpeg = shoot(picture, camera, rng, exposure)
    notes = random_stream(preset.seed, Stream.ANNOTATION, *key)
    keypoints = annotate(target, hidden, notes)
    keypoints = perturb(keypoints, preset.noise, target.height / SUPERSAMPLING, notes)
    return Render(jpeg, keypoints, occlusion, body, hidden)


def _draw_person(
    picture: Float32[np.ndarray, "3 height width"], figure: Figure, light: float
) -> Bool[np.ndarray, "height width"]:
    """Draw a person with a shadow, in place; returns the body's mask."""
    _shade_ground(picture, figure)
    layer = new_layer(*picture.shape[1:])
    draw_figure(layer, figure, light)
    over(picture, layer)
    return layer[3] > 0.5
