"""From an encoded image to a pose model's input, and from its pixels back."""

import dataclasses

import cv2
import numpy as np
from jaxtyping import Float, Float32, Integer, Real, UInt8


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What a top-down pose model expects.

    Attributes:
        height: of its input in pixels.
        width: of its input in pixels.
        mean: per channel, of 0 … 255, in the model's order of channels.
        std: per channel, likewise.
        padding: the person's box is the whole image, enlarged by this factor.
        bgr: whether the model's channels are blue, green, red.
    """

    height: int
    width: int
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)  # ImageNet's
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    padding: float = 1.25
    bgr: bool = False

    def decode(self, encoded: bytes) -> UInt8[np.ndarray, "height width 3"] | None:
        """The pixels as stored, whatever EXIF says; None if they cannot be decoded."""
        color = cv2.IMREAD_COLOR if self.bgr else cv2.IMREAD_COLOR_RGB
        flags = color | cv2.IMREAD_IGNORE_ORIENTATION
        try:
            return cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
        except cv2.error:  # an empty file, or a header that claims too many pixels
            return None

    def scale(self, sizes: Integer[np.ndarray, "images 2"]) -> Float[np.ndarray, " images"]:
        """Input pixels per image pixel: the padded image just fits the input.

        Args:
            sizes: (N, 2) height, width of the images.

        Returns:
            (N,) factors.
        """
        return (np.array([self.height, self.width]) / sizes).min(axis=1) / self.padding

    def crop(
        self, image: UInt8[np.ndarray, "height width 3"]
    ) -> Float32[np.ndarray, "3 input_height input_width"]:
        """The normalised input: the image scaled bilinearly into the middle, black around it.

        Args:
            image: (H, W, 3) uint8.

        Returns:
            (3, height, width) float32.
        """
        size = np.array(image.shape[:2])
        (scale,) = self.scale(size[None])
        shift = (np.array([self.height, self.width]) - scale * size + scale - 1) / 2
        matrix = np.array([[scale, 0, shift[1]], [0, scale, shift[0]]])
        crop = cv2.warpAffine(image, matrix, (self.width, self.height), flags=cv2.INTER_LINEAR)
        mean, std = np.array([self.mean, self.std], np.float32)
        normalised = (crop - mean) / std
        return np.ascontiguousarray(normalised.transpose(2, 0, 1))

    def to_image(
        self, positions: Real[np.ndarray, "images points 2"], sizes: Integer[np.ndarray, "images 2"]
    ) -> Float[np.ndarray, "images points 2"]:
        """Positions in the input as positions in the images; pixel centres are integers.

        The inverse of :meth:`crop`: x = (x' + 0.5 - width / 2) / scale + W / 2 - 0.5.

        Args:
            positions: (N, J, 2) x, y in the input.
            sizes: (N, 2) height, width of the images.

        Returns:
            (N, J, 2) x, y in the images.
        """
        middle = np.array([self.width, self.height]) / 2
        offset = (positions + 0.5 - middle) / self.scale(sizes)[:, None, None]
        return offset + sizes[:, None, ::-1] / 2 - 0.5
