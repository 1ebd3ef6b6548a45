"""The pose file that training reads: one pose an image, joined by the image's content."""

import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from input_pipeline.catalog import DataError
from input_pipeline.keypoints import NUM_JOINTS, NUM_PARTS

FORMAT_VERSION = 1
# name → axes, kind of dtype. M rows, D distractors; "U" is text of any length.
_ARRAYS = {
    "image_sha256": (("M",), "U"),
    "splits": (("M",), "U"),
    "filenames": (("M",), "U"),
    "keypoints": (("M", NUM_JOINTS, 3), "float32"),
    "sources": (("M",), "U"),
    "estimators": (("M",), "U"),
    "part_maps": (("M", "h", "w", NUM_PARTS), "uint8"),
    "distractors": (("D", NUM_JOINTS, 3), "float32"),
    "distractor_rows": (("D",), "int64"),
}
_OPTIONAL = ("part_maps", "distractors", "distractor_rows")


@dataclasses.dataclass(frozen=True, eq=False)
class PoseCache:
    """M images with a pose, sorted by split and file name; D other people on them.

    Attributes:
        image_sha256: (M,) str, hex digest of the encoded image.
        splits: (M,) str.
        filenames: (M,) str, unique within a split.
        keypoints: (M, 17, 3) float32 x, y in pixels of the stored image (pixel centres at integers)
            and confidence in [0, 1], in COCO's order; all zeros where the row has part maps.
        sources: (M,) str, the pose file or the model's file that the pose is from.
        estimators: (M,) str, what made the pose.
        part_maps: (M, h, w, 8) uint8 over the whole image, 255 for 1; all zeros where the row has
            keypoints. None if no row has part maps.
        distractors: (D, 17, 3) float32, as ``keypoints``; None if they were not kept.
        distractor_rows: (D,) int64, the row whose image each distractor stands on.
    """

    image_sha256: np.ndarray
    splits: np.ndarray
    filenames: np.ndarray
    keypoints: np.ndarray
    sources: np.ndarray
    estimators: np.ndarray
    part_maps: np.ndarray | None = None
    distractors: np.ndarray | None = None
    distractor_rows: np.ndarray | None = None

    def __len__(self) -> int:
        """Number of rows, M."""
        return len(self.image_sha256)

    def lookup(self, image_sha256: np.ndarray) -> np.ndarray:
        """The row with each image's pose.

        Args:
            image_sha256: (N,) hex digests.

        Returns:
            (N,) int64 rows, -1 where there is no pose; the first row of an image in two splits.
        """
        known, rows = np.unique(self.image_sha256, return_index=True)
        if not len(known):
            return np.full(len(image_sha256), -1)
        nearest = np.searchsorted(known, image_sha256).clip(max=len(known) - 1)
        return np.where(known[nearest] == image_sha256, rows[nearest], -1)


def write_poses(path: Path, cache: PoseCache) -> None:
    """Write the cache as a compressed .npz, whole or not at all; the same cache, the same bytes."""
    arrays = {name: getattr(cache, name) for name in _ARRAYS}
    arrays = {name: array for name, array in arrays.items() if array is not None}
    _check(arrays, path)
    beside = path.with_name(path.name + ".tmp")
    try:
        with beside.open("wb") as file:
            version = np.array(FORMAT_VERSION)
            np.savez_compressed(file, allow_pickle=False, format_version=version, **arrays)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def read_poses(path: Path) -> PoseCache:
    """Read and check a pose file.

    Raises:
        DataError: not a pose file, damaged, or with values that cannot be right.
    """
    arrays = _load(path)
    version = arrays.pop("format_version", None)
    if version is None or version.shape != () or version.dtype.kind not in "iu":
        raise DataError(f"{path}: not a file of input_pipeline.poses: it has no format_version")
    if version != FORMAT_VERSION:
        raise DataError(f"{path}: format version {version}, not {FORMAT_VERSION}; import it anew")
    _check(arrays, path)
    return PoseCache(**arrays)


def _load(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz without pickles; DataError for anything else."""
    if not path.is_file():
        raise DataError(f"{path}: no such pose file")
    content = io.BytesIO(path.read_bytes())
    try:
        with np.load(content, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception:  # there is little that a damaged archive cannot raise, in zipfile or NumPy
        raise DataError(f"{path}: not a pose file, or a damaged one; make it anew") from None


def _check(arrays: dict[str, np.ndarray], path: Path) -> None:
    """Raise DataError unless the arrays are a cache."""
    problem = _wrong_arrays(arrays) or next(_wrong_values(arrays), "")
    if problem:
        raise DataError(f"{path}: {problem}; make the pose file anew")


def _wrong_arrays(arrays: dict[str, np.ndarray]) -> str:
    """What is wrong with names, shapes or dtypes; empty if nothing is."""
    missing = [name for name in _ARRAYS if name not in arrays and name not in _OPTIONAL]
    if missing or ("distractors" in arrays) != ("distractor_rows" in arrays):
        return f"array {missing[0] if missing else 'distractors or distractor_rows'} is missing"
    lengths: dict[str, int] = {}
    for name, array in arrays.items():
        if name not in _ARRAYS:
            return f"unknown array {name}"
        axes, dtype = _ARRAYS[name]
        if (array.dtype.kind if dtype == "U" else array.dtype.name) != dtype:
            return f"{name} is {array.dtype}, not {'text' if dtype == 'U' else dtype}"
        right = array.ndim == len(axes) and all(
            length == (axis if isinstance(axis, int) else lengths.setdefault(axis, length))
            for axis, length in zip(axes, array.shape, strict=True)
        )
        if not right or 0 in array.shape[1:]:
            wanted = ", ".join(str(lengths.get(axis, axis)) for axis in map(str, axes))
            return f"{name} has shape {array.shape}, not ({wanted})"
    return ""


def _wrong_values(arrays: dict[str, np.ndarray]) -> Iterator[str]:
    """Yield what is wrong with the values of arrays that are right otherwise."""
    digests = arrays["image_sha256"].astype("U64").view(np.uint32)
    hexadecimal = np.isin(digests, [ord(character) for character in "0123456789abcdef"]).all()
    if not hexadecimal or (np.char.str_len(arrays["image_sha256"]) != 64).any():
        yield "image_sha256 has values that are no SHA-256 digests"
    names = list(zip(arrays["splits"].tolist(), arrays["filenames"].tolist(), strict=True))
    if names != sorted(set(names)):
        yield "its rows are not sorted by split and file name, each once"
    for name in ("keypoints", "distractors"):
        people = arrays.get(name, np.zeros((0, NUM_JOINTS, 3)))
        confidence = people[..., 2]
        if not np.isfinite(people).all() or (confidence < 0).any() or (confidence > 1).any():
            yield f"{name} must be finite, with confidences in [0, 1]"
    mapped = arrays.get("part_maps", np.zeros((len(names), 1, 1, 1))).any(axis=(1, 2, 3))
    if (arrays["keypoints"][..., 2].any(axis=1) == mapped).any():
        yield "every row must have either keypoints or part maps"
    rows = arrays.get("distractor_rows", np.zeros(0))
    if (rows < 0).any() or (rows >= len(names)).any():
        yield "distractor_rows point outside the rows"
