"""All settings of the size and difficulty of the data set."""

import dataclasses
import enum
import zlib

import numpy as np

# Increment it whenever the drawing code changes its output; it is part of the data set's version.
RENDERER_REVISION = 1

Range = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class SceneConfig:
    """The difficulty of the pictures. Ranges are uniform; sizes are relative to the resolution.

    Attributes:
        person_height: height of the whole standing person / image height. Above 1 the box cuts.
        shift_x: largest offset of the person from the image's centre / image width.
        shift_y: largest vertical offset / image height.
        bystander_probability: share of images with another person beside or behind the target.
        bystander_height: bystander's height / target's height.
        bystander_offset: distance between bystander and target / target's height.
        background_people: number of distant people on each camera's canvas of 14 image widths.
        cover: share of the target's visible body that an occluder hides, in an occluded image.
        train_occluded: share of occluded images in ``train``.
        gallery_occluded: share of occluded images in ``gallery``.
        box_weight: relative frequency of boxes and bins in front of the legs, among occluders.
        pole_weight: the same for poles, pillars and tree trunks.
        bush_weight: the same for bushes below and foliage above.
        car_weight: the same for cars.
        panel_weight: the same for walls and doors that hide one side.
        pedestrian_weight: the same for people dressed from the same palettes.
        channel_gain: per-camera gain of red, green and blue (the colour cast).
        contrast: per-camera contrast about mid-grey.
        brightness: per-camera offset in grey levels (of 255).
        exposure_jitter: per-image brightness offset around the camera's, in grey levels.
        blur: per-camera standard deviation of the lens blur, pixels of a 128-row image.
        noise: per-camera standard deviation of the sensor noise, grey levels.
        jpeg_quality: per-camera JPEG quality, 1..100.
        pitch: per-camera angle at which the camera looks down, degrees.
    """

    person_height: Range = (0.72, 1.05)
    shift_x: float = 0.13
    shift_y: float = 0.08
    bystander_probability: float = 0.25
    bystander_height: Range = (0.8, 1.05)
    bystander_offset: Range = (0.2, 0.42)
    background_people: int = 5
    cover: Range = (0.2, 0.6)
    train_occluded: float = 0.31
    gallery_occluded: float = 0.105
    box_weight: float = 1.0
    pole_weight: float = 0.7
    bush_weight: float = 1.0
    car_weight: float = 0.8
    panel_weight: float = 0.7
    pedestrian_weight: float = 1.2
    channel_gain: Range = (0.87, 1.13)
    contrast: Range = (0.84, 1.1)
    brightness: Range = (-12.0, 12.0)
    exposure_jitter: float = 6.0
    blur: Range = (0.3, 1.0)
    noise: Range = (3.0, 9.0)
    jpeg_quality: Range = (60.0, 92.0)
    pitch: Range = (4.0, 18.0)


@dataclasses.dataclass(frozen=True)
class KeypointNoise:
    """The errors of a pose estimator. If all are zero, poses are exact.

    Attributes:
        std: standard deviation of each coordinate / the person's height.
        joint_dropout: probability that a joint's confidence is lost (set to 0).
        hallucination: probability that a hidden joint inside the image is taken for visible.
        pose_dropout: probability that an image has no pose at all (all 17 rows are 0).
    """

    std: float = 0.0
    joint_dropout: float = 0.0
    hallucination: float = 0.0
    pose_dropout: float = 0.0


@dataclasses.dataclass(frozen=True)
class Preset:
    """One complete data set: its size, seed and difficulty.

    Attributes:
        image_shape: (height, width) of the stored images, pixels.
        train_identities: people in ``train``; their images number ``train_images`` in total.
        train_images: images in ``train``, spread evenly over the identities.
        test_identities: people in ``query`` and ``query_holistic``; none of them is in ``train``.
        query_images: images in ``query``, all occluded.
        query_holistic_images: images in ``query_holistic``, none occluded.
        gallery_identities: people in ``gallery``: the test identities, then distractors.
        gallery_images: images in ``gallery``.
        cameras_per_identity: number of cameras that see each person.
        cameras: number of cameras.
        seed: determines everything random.
        scene: the difficulty of the pictures.
        noise: the errors of the pose annotations.
    """

    image_shape: tuple[int, int]
    train_identities: int
    train_images: int
    test_identities: int
    query_images: int
    query_holistic_images: int
    gallery_identities: int
    gallery_images: int
    cameras_per_identity: int = 4
    cameras: int = 6
    seed: int = 7
    scene: SceneConfig = SceneConfig()
    noise: KeypointNoise = KeypointNoise()

    def fingerprint(self) -> int:
        """A number of up to six digits that changes with any setting and with the drawing code."""
        return zlib.crc32(f"{RENDERER_REVISION} {self!r}".encode()) % 1_000_000


class Stream(enum.IntEnum):
    """Independent random streams: another draw from one does not change the others."""

    PEOPLE = 0
    PLAN = 1
    CAMERA = 2
    IMAGE = 3
    ANNOTATION = 4


def random_stream(seed: int, stream: Stream, *key: int) -> np.random.Generator:
    """The generator for one purpose: a pure function of its arguments."""
    return np.random.default_rng([seed, int(stream), *key])


PRESETS = {
    "tiny": Preset(
        image_shape=(64, 32),
        train_identities=16,
        train_images=16 * 8,
        test_identities=8,
        query_images=16,
        query_holistic_images=16,
        gallery_identities=8,
        gallery_images=48,
    ),
    "demo": Preset(
        image_shape=(128, 64),
        train_identities=128,
        train_images=128 * 12,
        test_identities=100,
        query_images=400,
        query_holistic_images=200,
        gallery_identities=100,
        gallery_images=600,
    ),
    # For choices: people of neither split of "demo", seen by its cameras; no training images.
    "demo_validation": Preset(
        image_shape=(128, 64),
        train_identities=228,
        train_images=0,
        test_identities=100,
        query_images=400,
        query_holistic_images=200,
        gallery_identities=100,
        gallery_images=600,
    ),
    "benchmark": Preset(
        image_shape=(256, 128),
        train_identities=702,
        train_images=15_618,
        test_identities=519,
        query_images=2_210,
        query_holistic_images=2_210,
        gallery_identities=1_110,
        gallery_images=17_661,
    ),
}
