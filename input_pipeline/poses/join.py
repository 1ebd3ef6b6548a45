"""Which image a pose belongs to: decided by file stem, and by folders where stems repeat."""

import re
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from input_pipeline.poses.images import Images

UNMATCHED, AMBIGUOUS = -1, -2

# Endings of poses and images that share a name: 7.jpg, 7.json, 7_keypoints.json, 7.jpg.npy,
# 7.jpg.predictions.json, 7.jpg.pifpaf.json.
_ENDINGS = re.compile(
    r"(_keypoints|_openpose|\.(predictions|pifpaf|json|npy|jpe?g|png|bmp|tiff?|gif|webp|ppm))+$",
    re.IGNORECASE,
)


def bare_path(name: str) -> str:
    """A path without the endings of images and pose files.

    >>> bare_path("Probe/1.jpg"), bare_path("Probe/1.jpg_keypoints.json")
    ('Probe/1', 'Probe/1')
    """
    return _ENDINGS.sub("", name)


class Match(NamedTuple):
    """The image that a pose belongs to.

    Attributes:
        content: the number of the image's content, or ``UNMATCHED``, or ``AMBIGUOUS``.
        shared: number of path components that the two share, counted from the end; 0 unmatched.
    """

    content: int
    shared: int


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
        self._paths: dict[int, list[list[str]]] = {}
        self._folders: set[str] = set()
        for filename, content in zip(images.filenames.tolist(), self.contents, strict=True):
            for end in _path_ends(filename):
                self._by_path_end.setdefault(end, set()).add(int(content))
            parts = bare_path(filename).split("/")
            self._paths.setdefault(int(content), []).append(parts)
            self._folders.update(parts[:-1])

    def find(self, path: str, root: str = "") -> Match:
        """The content of the image that a pose belongs to.

        Images with the pose's stem are candidates; those that share the longest trailing run of
        path components with it remain. An image in two splits is one content. A pose below
        ``Gallery`` is not that of ``Probe/1.jpg`` if the data set has a folder ``Gallery``.

        Args:
            path: of the pose below ``root``.
            root: the folder of the poses. All of its path can agree with the image's; of its
                folders, the last alone can contradict.

        Returns:
            The match; ``UNMATCHED`` without an image of this stem, or if folders contradict each
            other; ``AMBIGUOUS`` if different images remain.
        """
        outer = root.split("/") if root else []
        parts = [*outer, *bare_path(path).split("/")]
        for start in range(len(parts)):  # the longest run first
            found = self._by_path_end.get("/".join(parts[start:]))
            if found is None:
                continue
            if len(found) > 1:
                return Match(AMBIGUOUS, len(parts) - start)
            content = next(iter(found))
            if self._contradict(parts[len(outer[:-1]) : start], parts[start:], content):
                break
            return Match(content, len(parts) - start)
        return Match(UNMATCHED, 0)

    def _contradict(self, above: list[str], end: list[str], content: int) -> bool:
        """Whether the folders above a pose's matching end name another folder of the data set.

        The nearest one that the data set has counts; folders unknown to it say nothing.
        """
        named = next((part for part in reversed(above) if part in self._folders), None)
        rest = [path[: -len(end)] for path in self._paths[content] if path[-len(end) :] == end]
        return named is not None and not any(not one or named in one for one in rest)


def _path_ends(path: str) -> list[str]:
    """All trailing runs of a bare path's components, the longest first.

    >>> _path_ends("a/b/1.jpg")
    ['a/b/1', 'b/1', '1']
    """
    parts = bare_path(path).split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]
