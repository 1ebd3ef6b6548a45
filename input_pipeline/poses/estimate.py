"""Poses of every image of a data set, estimated by the user's own model."""

import numpy as np
from jaxtyping import Float32

from input_pipeline.catalog import Catalog
from input_pipeline.errors import DataError
from input_pipeline.keypoints import NUM_JOINTS
from input_pipeline.poses.cache import PoseCache
from input_pipeline.poses.crop import Preprocessing
from input_pipeline.poses.images import Images, images_of
from input_pipeline.poses.model import PoseModel
from input_pipeline.progress import progress


def estimate_poses(
    catalogs: dict[str, Catalog],
    model: PoseModel,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    estimator: str,
) -> tuple[PoseCache, list[str]]:
    """Run the model over all images, once per content.

    Args:
        catalogs: by the split's name, sorted.
        model: the pose model.
        preprocessing: what the model expects.
        batch_size: images per run, unless the model fixes it.
        estimator: the name kept with each pose.

    Returns:
        The pose file's content, and the images that cannot be decoded as "split/filename". Those
        have no pose, nor has an image without any confident joint.

    Raises:
        UserError: the outputs are not those of a pose model.
        DataError: no image has a pose.
    """
    images = images_of(catalogs)
    encoded = [(catalog, row) for catalog in catalogs.values() for row in range(len(catalog))]
    first, content = np.unique(images.sha256, return_index=True, return_inverse=True)[1:]
    todo = np.sort(first)
    keypoints = np.zeros((len(images), NUM_JOINTS, 3), np.float32)
    decodable = np.zeros(len(images), bool)
    size = model.batch or batch_size
    with progress(todo, "estimating", unit="image") as bar:
        for rows in np.split(todo, range(size, len(todo), size)):
            decoded = [preprocessing.decode(catalog.images[i]) for catalog, i in _at(encoded, rows)]
            kept = [image for image in decoded if image is not None]
            rows_kept = rows[[image is not None for image in decoded]]
            if kept:
                keypoints[rows_kept] = _estimate(kept, model, preprocessing)
                decodable[rows_kept] = True
            bar.update(len(rows))
    keypoints, decodable = keypoints[first[content]], decodable[first[content]]
    failed = [f"{images.splits[row]}/{images.filenames[row]}" for row in np.flatnonzero(~decodable)]
    return _to_cache(images, keypoints, model.path.name, estimator), failed


def _at(items: list, rows: np.ndarray) -> list:
    """The items at these rows."""
    return [items[row] for row in rows.tolist()]


def _estimate(
    images: list[np.ndarray], model: PoseModel, preprocessing: Preprocessing
) -> Float32[np.ndarray, "images 17 3"]:
    """(n, 17, 3) keypoints in pixels of the images (H, W, 3)."""
    positions, confidence = model(np.stack([preprocessing.crop(image) for image in images]))
    sizes = np.array([image.shape[:2] for image in images])
    positions = preprocessing.to_image(positions, sizes)
    return np.concatenate([positions, confidence[..., None]], axis=-1).astype(np.float32)


def _to_cache(images: Images, keypoints: np.ndarray, source: str, estimator: str) -> PoseCache:
    """The rows that have a pose."""
    posed = np.flatnonzero(keypoints[..., 2].any(axis=1))
    if not len(posed):
        raise DataError(f"{source}: finds no joint in any image: check --mean, --std and --bgr")
    return PoseCache(
        image_sha256=images.sha256[posed],
        splits=images.splits[posed],
        filenames=images.filenames[posed],
        keypoints=keypoints[posed],
        sources=np.full(len(posed), source),
        estimators=np.full(len(posed), estimator),
    )
