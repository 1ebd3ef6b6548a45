"""The pose file that training reads: one pose per image, joined by the image's content."""

import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int, Shaped, UInt8

from input_pipeline.catalog import Catalog
from input_pipeline.errors import DataError
from input_pipeline.keypoints import NUM_JOINTS, NUM_PARTS, without_origin
from pgfl_jax.files import replacing, stand_in

FORMAT_VERSION = 1
_VERSION = "format_version"
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
        sources: (M,) str, the pose file or the model's file that the pose comes from.
        estimators: (M,) str, what made the pose.
        part_maps: (M, h, w, 8) uint8 over the whole image, 255 for 1; all zeros where the row has
            keypoints. None if no row has part maps.
        distractors: (D, 17, 3) float32, as ``keypoints``; None if they were not kept.
        distractor_rows: (D,) int64, the row of the image that shows each distractor.
    """

    image_sha256: Shaped[np.ndarray, " posed"]
    splits: Shaped[np.ndarray, " posed"]
    filenames: Shaped[np.ndarray, " posed"]
    keypoints: Float32[np.ndarray, "posed 17 3"]
    sources: Shaped[np.ndarray, " posed"]
    estimators: Shaped[np.ndarray, " posed"]
    part_maps: UInt8[np.ndarray, "posed rows columns 8"] | None = None
    distractors: Float32[np.ndarray, "others 17 3"] | None = None
    distractor_rows: Int[np.ndarray, " others"] | None = None

    def __len__(self) -> int:
        """Number of rows, M."""
        return len(self.image_sha256)

    def lookup(self, image_sha256: Shaped[np.ndarray, " images"]) -> Int[np.ndarray, " images"]:
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


def join_poses(catalog: Catalog, cache: PoseCache) -> Catalog:
    """The catalog's images with the cache's poses, matched by content.

    Images that the cache does not contain keep their own poses.

    Raises:
        DataError: the cache's part maps have a different grid from those of the catalog.
    """
    rows = cache.lookup(catalog.image_sha256)
    known = rows >= 0
    if not known.any():
        return catalog
    keypoints, part_maps = catalog.keypoints.copy(), catalog.part_maps
    keypoints[known] = cache.keypoints[rows[known]]
    given = None if cache.part_maps is None else cache.part_maps[rows[known]]
    if given is not None and not given.any():
        given = None
    if part_maps is not None or given is not None:
        shapes = {maps.shape[1:] for maps in (part_maps, given) if maps is not None}
        if len(shapes) > 1:
            raise DataError(
                f"config.data.pose.files: part maps on different grids, {sorted(shapes)}; import "
                "them all at one size"
            )
        shape = (len(catalog), *shapes.pop())
        part_maps = np.zeros(shape, np.uint8) if part_maps is None else part_maps.copy()
        part_maps[known] = 0 if given is None else given
    return catalog.replace_poses(keypoints, part_maps)


def write_poses(path: Path, cache: PoseCache) -> None:
    """Write the cache as a compressed .npz, atomically; equal caches give equal bytes."""
    arrays = {name: getattr(cache, name) for name in _ARRAYS}
    arrays = {name: array for name, array in arrays.items() if array is not None}
    _check(arrays, path)
    with replacing(path) as beside, beside.open("wb") as file:
        version = np.array(FORMAT_VERSION)
        np.savez_compressed(file, allow_pickle=False, **{_VERSION: version}, **arrays)


def is_pose_file(path: Path) -> bool:
    """Whether a file is one that :func:`write_poses` wrote, of any version."""
    try:
        return _VERSION in _load(path)
    except DataError:
        return False


def read_poses(path: Path) -> PoseCache:
    """Read and check a pose file.

    Raises:
        DataError: not a pose file, damaged, or with impossible values.
    """
    arrays = _load(path)
    version = arrays.pop(_VERSION, None)
    if version is None or version.shape != () or version.dtype.kind not in "iu":
        raise DataError(f"{path}: not a file of input_pipeline.poses: it has no format_version")
    if version != FORMAT_VERSION:
        raise DataError(f"{path}: format version {version}, not {FORMAT_VERSION}; import it again")
    _check(arrays, path)
    for name in {"keypoints", "distractors"} & arrays.keys():  # older imports kept such joints
        arrays[name] = without_origin(arrays[name])[0]
    return PoseCache(**arrays)


def _load(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz without pickles; DataError for anything else."""
    if not path.is_file():
        raise DataError(f"{path}: no such pose file")
    content = path.read_bytes()
    if found := stand_in(content[:512]):
        raise DataError(f"{path}: {found}")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception:  # zipfile and NumPy raise almost anything for a damaged archive
        raise DataError(f"{path}: not a pose file, or a damaged one; make it again") from None


def _check(arrays: dict[str, np.ndarray], path: Path) -> None:
    """Raise DataError unless the arrays form a cache."""
    problem = _wrong_arrays(arrays) or next(_wrong_values(arrays), "")
    if problem:
        raise DataError(f"{path}: {problem}; make the pose file again")


def _wrong_arrays(arrays: dict[str, np.ndarray]) -> str:
    """The first fault in names, shapes or dtypes; empty if there is none."""
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
    """Yield the faults in the values of arrays whose names, shapes and dtypes are right."""
    digests = arrays["image_sha256"].astype("U64").view(np.uint32)
    hexadecimal = np.isin(digests, [ord(character) for character in "0123456789abcdef"]).all()
    if not hexadecimal or (np.char.str_len(arrays["image_sha256"]) != 64).any():
        yield "image_sha256 has values that are not SHA-256 digests"
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
