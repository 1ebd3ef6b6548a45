"""Which image a pose belongs to: decided by file stem, and by folders where stems repeat."""

import re

import numpy as np
from jaxtyping import Int

from input_pipeline.poses.images import Images

UNMATCHED, AMBIGUOUS = -1, -2

# Endings of poses and images that share a name: 7.jpg, 7.json, 7_keypoints.json, 7.jpg.npy,
# 7.jpg.predictions.json.
_ENDINGS = re.compile(
    r"(_keypoints|_openpose|\.(predictions|json|npy|jpe?g|png|bmp|tiff?|gif|webp|ppm))+$",
    re.IGNORECASE,
)


def bare_path(name: str) -> str:
    """A path without the endings of images and pose files.

    >>> bare_path("Probe/1.jpg"), bare_path("Probe/1.jpg_keypoints.json")
    ('Probe/1', 'Probe/1')
    """
    return _ENDINGS.sub("", name)


class ImageIndex:
    """The different contents of a data set's images, found by the end of a path.

    Attributes:
        contents: (N,) int64, the number of each image's content; equal files have equal numbers.
    """

    contents: Int[np.ndarray, " images"]

    def __init__(self, images: Images) -> None:
        """Index every image under every trailing run of its path's components."""
        self.contents = np.unique(images.sha256, return_inverse=True)[1]
        self._by_path_end: dict[str, set[int]] = {}
        for filename, content in zip(images.filenames.tolist(), self.contents, strict=True):
            for end in _path_ends(filename):
                self._by_path_end.setdefault(end, set()).add(int(content))

    def find(self, path: str) -> int:
        """The content of the image that a pose belongs to.

        Images with the pose's stem are candidates; those that share the longest trailing run of
        path components with it remain. An image in two splits is one content.

        Args:
            path: of the pose, with all known folders.

        Returns:
            The content's number; ``UNMATCHED`` without an image of this stem; ``AMBIGUOUS`` if
            different images remain.
        """
        for end in _path_ends(path):  # the longest first
            if end in self._by_path_end:
                found = self._by_path_end[end]
                return next(iter(found)) if len(found) == 1 else AMBIGUOUS
        return UNMATCHED


def _path_ends(path: str) -> list[str]:
    """All trailing runs of a bare path's components, the longest first.

    >>> _path_ends("a/b/1.jpg")
    ['a/b/1', 'b/1', '1']
    """
    parts = bare_path(path).split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]
