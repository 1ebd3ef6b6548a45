"""The cameras: their colours, light, noise and compression."""

import dataclasses
import functools

import cv2
import numpy as np
from jaxtyping import Float32

from input_pipeline.synthetic.layer import SUPERSAMPLING
from input_pipeline.synthetic.settings import Preset, Stream, random_stream


@dataclasses.dataclass(frozen=True)
class Camera:
    """One camera. Units as in ``SceneConfig``; ``light`` is -1 (from the left) to 1."""

    gain: tuple[float, float, float]
    contrast: float
    brightness: float
    blur: float
    noise: float
    jpeg_quality: int
    pitch: float
    light: float


@functools.cache
def cameras(preset: Preset) -> tuple[Camera, ...]:
    """The cameras of a data set.

    The values of each quantity are spread evenly over its range and assigned to the cameras in
    random order, so that no two cameras are alike.
    """
    rng = random_stream(preset.seed, Stream.CAMERA)

    def deal(limits: tuple[float, float]) -> np.ndarray:
        share = (rng.permutation(preset.cameras) + 0.5) / preset.cameras
        return limits[0] + share * (limits[1] - limits[0])

    scene = preset.scene
    columns = [deal(scene.channel_gain) for _ in range(3)]
    columns += [deal(scene.contrast), deal(scene.brightness), deal(scene.blur), deal(scene.noise)]
    columns += [deal(scene.jpeg_quality), deal(scene.pitch), deal((-1.0, 1.0))]
    return tuple(
        Camera((r, g, b), contrast, brightness, blur, noise, round(quality), pitch, light)
        for r, g, b, contrast, brightness, blur, noise, quality, pitch, light in np.stack(
            columns, axis=1
        ).tolist()
    )


def shoot(
    scene: Float32[np.ndarray, "3 height width"],
    camera: Camera,
    rng: np.random.Generator,
    exposure: float,
) -> bytes:
    """Take the picture: downsampling, then lens, colour, light, noise and compression.

    Args:
        scene: (3, height, width) float32 at ``SUPERSAMPLING`` times the image's size, 0..255.
        camera: the camera that takes it.
        rng: for the sensor noise.
        exposure: brightness offset of this image, grey levels.

    Returns:
        The JPEG file of the image.
    """
    height, width = (size // SUPERSAMPLING for size in scene.shape[1:])
    image = cv2.resize(cv2.merge(list(scene)), (width, height), interpolation=cv2.INTER_AREA)
    image = cv2.GaussianBlur(image, (0, 0), camera.blur * height / 128)
    slope = np.float32(camera.contrast) * np.array(camera.gain, np.float32)
    image = image * slope + np.float32(128 * (1 - camera.contrast) + camera.brightness + exposure)
    image += np.float32(camera.noise) * rng.standard_normal(image.shape, np.float32)
    pixels = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    _, encoded = cv2.imencode(
        ".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, camera.jpeg_quality]
    )
    return encoded.tobytes()
