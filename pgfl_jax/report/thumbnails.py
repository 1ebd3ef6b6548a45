"""Small pictures for the page."""

import io

from PIL import Image

HEIGHT, QUALITY = 128, 72
_SMALL = 6_000  # bytes: a JPEG file of this size goes into the page unchanged


class Thumbnails:
    """The pictures of a page: JPEG files, each once.

    Attributes:
        files: the JPEG files.
    """

    def __init__(self) -> None:
        """Begin without pictures."""
        self.files: list[bytes] = []
        self._numbers: dict[str, int | None] = {}

    def add(self, key: str, encoded: bytes) -> int | None:
        """Number of a picture in :attr:`files`; None if it cannot be decoded.

        Args:
            key: equal for equal pictures.
            encoded: its JPEG or PNG file.
        """
        if key not in self._numbers:
            jpeg = thumbnail(encoded)
            self._numbers[key] = None if jpeg is None else len(self.files)
            self.files += [] if jpeg is None else [jpeg]
        return self._numbers[key]


def thumbnail(encoded: bytes) -> bytes | None:
    """A picture as JPEG, at most :data:`HEIGHT` pixels high; None if it cannot be decoded.

    As in training, an orientation in its EXIF data does not count.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as opened:
            if opened.format == "JPEG" and opened.height <= HEIGHT and len(encoded) <= _SMALL:
                opened.load()
                return encoded
            opened.draft("RGB", (opened.width * HEIGHT // max(1, opened.height), HEIGHT))
            picture = opened.convert("RGB")
            picture.thumbnail((4 * HEIGHT, HEIGHT), Image.Resampling.BICUBIC)
            file = io.BytesIO()
            picture.save(file, "JPEG", quality=QUALITY)
            return file.getvalue()
    except (OSError, SyntaxError, ValueError):  # what Pillow raises for damaged files
        return None
