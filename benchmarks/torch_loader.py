"""The training input of this project as a `torch.utils.data.DataLoader`: PIL, NumPy and torch.

The yardstick of `benchmarks.input_pipeline`. It does the same work in the same order with the same
parameters: PxK sampling, decode, resize, flip, pad and crop, normalise, random erasing. Keypoints
follow the images, and the workers draw the batch's part maps.
"""

import dataclasses
import io
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from input_pipeline import keypoints as kp
from input_pipeline.catalog import Catalog
from input_pipeline.sampler import identity_batches
from pgfl_jax.config import AugmentConfig, DataConfig

Keypoints = Float32[np.ndarray, "17 3"]  # x and y in pixels, confidence in [0, 1]

_ERASING_ATTEMPTS = 8
_SEGMENTS = np.array([segment for part in kp.PARTS for segment in part.segments])
_SEGMENTS_PER_PART = [len(part.segments) for part in kp.PARTS]
_FIRST, _SECOND = (
    np.array([kp.JOINTS.index(point[i]) for point in kp.DERIVED_POINTS.values()]) for i in (0, 1)
)
_FRACTION = torch.tensor([[point[2]] for point in kp.DERIVED_POINTS.values()])


class TrainImages(Dataset):
    """Augmented training images with their keypoints; read it with :func:`train_loader`."""

    def __init__(self, catalog: Catalog, config: DataConfig) -> None:
        """Keep the encoded images in memory, as tf.data's pipeline does."""
        self._catalog = catalog
        self._config = config
        self._labels = catalog.labels
        mean, std = np.array(config.mean), np.array(config.std)
        self._scale = torch.tensor(1 / (255 * std), dtype=torch.float32)[:, None, None]
        self._offset = torch.tensor(-mean / std, dtype=torch.float32)[:, None, None]

    def __getitem__(self, index: int) -> dict[str, torch.Tensor | np.ndarray | int]:
        """A normalised image (3, H, W) float32 and its keypoints, both augmented."""
        config = self._config
        image = Image.open(io.BytesIO(self._catalog.images[index])).convert("RGB")
        image, keypoints = resize(image, self._catalog.keypoints[index], config)
        image, keypoints = random_flip(image, keypoints, config.augment.flip)
        image, keypoints = random_crop(image, keypoints, config.augment.pad)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float()
        pixels.mul_(self._scale).add_(self._offset)
        return {
            "erased": random_erasing(pixels, config.augment),
            "images": pixels,
            "keypoints": keypoints,
            "labels": self._labels[index],
            "indices": index,
        }


class IdentityBatchSampler(Sampler[list[int]]):
    """The endless batches of :func:`input_pipeline.sampler.identity_batches`."""

    def __init__(self, catalog: Catalog, config: DataConfig, seed: int) -> None:
        """Use the same batches as tf.data's pipeline with this seed."""
        self._catalog, self._config, self._seed = catalog, config, seed

    def __iter__(self) -> Iterator[list[int]]:
        """Lists of P·K indices."""
        batches = identity_batches(
            self._catalog.identities,
            self._catalog.cameras,
            identities_per_batch=self._config.identities_per_batch,
            images_per_identity=self._config.images_per_identity,
            seed=self._seed,
        )
        return (batch.tolist() for batch in batches)


@dataclasses.dataclass(frozen=True)
class Collate:
    """Stacks images into a batch and draws the part maps of all images at once."""

    config: DataConfig
    map_shape: tuple[int, int]

    def __call__(self, rows: list[dict[str, torch.Tensor | np.ndarray | int]]) -> dict:
        """Stack rows of `TrainImages`; in a worker, the images go to shared memory."""
        keypoints = torch.from_numpy(np.stack([row.pop("keypoints") for row in rows]))
        batch = default_collate(rows)
        batch["part_maps"], batch["visibility"] = part_maps(
            keypoints, batch.pop("erased"), self.config, self.map_shape
        )
        return batch


def train_loader(
    catalog: Catalog, config: DataConfig, *, map_shape: tuple[int, int], seed: int, workers: int
) -> DataLoader:
    """A loader of endless augmented PxK batches.

    Args:
        catalog: the training split.
        config: the data options.
        map_shape: (h, w) of the part maps.
        seed: the sampler's seed.
        workers: number of processes.

    Returns:
        Batches as dicts: ``images`` (B, 3, H, W) float32, ``labels`` and ``indices`` (B,) int64,
        ``part_maps`` (B, 8, h, w) and ``visibility`` (B, 8) float32.
    """
    return DataLoader(
        TrainImages(catalog, config),
        batch_sampler=IdentityBatchSampler(catalog, config, seed),
        num_workers=workers,
        collate_fn=Collate(config, map_shape),
        worker_init_fn=_start_worker,
    )


def _start_worker(_: int) -> None:
    """Use one thread per worker; the workers provide the parallelism."""
    torch.set_num_threads(1)


def resize(
    image: Image.Image, keypoints: Keypoints, config: DataConfig
) -> tuple[Image.Image, Keypoints]:
    """Resize bilinearly to (H, W); returns new keypoints."""
    size = np.array([config.width, config.height])
    scale = (size / image.size).astype(np.float32)
    keypoints = keypoints.copy()
    keypoints[:, :2] = (keypoints[:, :2] + 0.5) * scale - 0.5
    return image.resize((config.width, config.height), Image.Resampling.BILINEAR), keypoints


def random_flip(
    image: Image.Image, keypoints: Keypoints, probability: float
) -> tuple[Image.Image, Keypoints]:
    """Mirror the image at random, which swaps left and right joints."""
    if torch.rand(()) >= probability:
        return image, keypoints
    keypoints = keypoints[kp.FLIP]
    keypoints[:, 0] = image.width - 1 - keypoints[:, 0]
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), keypoints


def random_crop(
    image: Image.Image, keypoints: Keypoints, pad: int
) -> tuple[Image.Image, Keypoints]:
    """Shift by up to ``pad`` pixels in each direction, padding with black."""
    width, height = image.size
    # PIL's crop fills the outside with black, so padding and cropping take one copy.
    left, top = (torch.randint(2 * pad + 1, (2,)) - pad).tolist()
    keypoints[:, 0] -= left
    keypoints[:, 1] -= top
    return image.crop((left, top, left + width, top + height)), keypoints


def random_erasing(
    pixels: Float32[torch.Tensor, "3 height width"], config: AugmentConfig
) -> Int[torch.Tensor, "4"]:
    """Set a random rectangle to 0 in place; returns its top, left, bottom and right."""
    if torch.rand(()) >= config.erasing:
        return torch.zeros(4, dtype=torch.int64)
    proposals = torch.rand(_ERASING_ATTEMPTS, 2).tolist()
    height, width = erasing_size(proposals, (pixels.shape[1], pixels.shape[2]), config)
    top = int(torch.randint(pixels.shape[1] - height + 1, ()))
    left = int(torch.randint(pixels.shape[2] - width + 1, ()))
    pixels[:, top : top + height, left : left + width] = 0
    return torch.tensor([top, left, top + height, left + width])


def erasing_size(
    proposals: list[list[float]], limits: tuple[int, int], config: AugmentConfig
) -> tuple[int, int]:
    """Height and width of the first proposal that fits; if none does, the first one, clipped.

    Args:
        proposals: pairs in [0, 1), the positions in the ranges of area and aspect.
        limits: the image's height and width.
        config: the ranges.
    """
    smallest, largest = config.erasing_area
    lowest = config.erasing_aspect
    sizes = []
    for area, aspect in proposals:
        pixels = limits[0] * limits[1] * (smallest + (largest - smallest) * area)
        ratio = lowest + (1 / lowest - lowest) * aspect
        height, width = round((pixels * ratio) ** 0.5), round((pixels / ratio) ** 0.5)
        if height <= limits[0] and width <= limits[1]:
            return height, width
        sizes.append((height, width))
    return min(sizes[0][0], limits[0]), min(sizes[0][1], limits[1])


def part_maps(
    keypoints: Float32[torch.Tensor, "batch 17 3"],
    erased: Int[torch.Tensor, "batch 4"],
    config: DataConfig,
    map_shape: tuple[int, int],
) -> tuple[Float32[torch.Tensor, "batch 8 height width"], Float32[torch.Tensor, "batch 8"]]:
    """The maps of :func:`input_pipeline.pose_maps.part_maps`, channels first.

    Limbs are cut off at the border of the input, also where it shows padding.

    Args:
        keypoints: x and y in pixels of the network's input, and confidence in [0, 1].
        erased: top, left, bottom and right of the erased rectangles.
        config: the data options.
        map_shape: (h, w) of the maps.

    Returns:
        Part maps and visibilities.
    """
    first, second = keypoints[:, _FIRST], keypoints[:, _SECOND]
    position = first[..., :2] + _FRACTION * (second[..., :2] - first[..., :2])
    confidence = torch.minimum(first[..., 2:], second[..., 2:])
    points = torch.cat([keypoints, torch.cat([position, confidence], dim=-1)], dim=1)
    start, end = points[:, _SEGMENTS[:, 0]], points[:, _SEGMENTS[:, 1]]
    weight = torch.minimum(start[..., 2], end[..., 2])
    shape = config.height, config.width
    start, end, shown = _clip(start[..., :2], end[..., :2], shape)
    squared = _squared_distances(start, end, shape, map_shape)
    left = ~_cells_inside(erased, shape, map_shape)[:, None]
    corner = ((shape[0] / map_shape[0]) ** 2 + (shape[1] / map_shape[1]) ** 2) / 4
    shown &= ((squared <= 1.001 * corner) & left).any(-1).any(-1)
    weight = torch.where(shown & (weight >= config.pose.threshold), weight, 0.0)
    squared.mul_(-0.5 / (config.pose.sigma * config.height) ** 2)
    drawn = squared.exp_().mul_(weight[..., None, None]).mul_(left)
    return _max_per_part(drawn), _max_per_part(weight)


def _clip(
    start: Float[torch.Tensor, "batch segments 2"],
    end: Float[torch.Tensor, "batch segments 2"],
    shape: tuple[int, int],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The part of each segment inside the input, and whether there is any."""
    direction = end - start
    steps = torch.where(direction.abs() < 1e-6, 1e-6, direction)
    to_low = (-0.5 - start) / steps
    to_high = (torch.tensor([shape[1] - 0.5, shape[0] - 0.5]) - start) / steps
    enters = torch.minimum(to_low, to_high).amax(-1)
    leaves = torch.maximum(to_low, to_high).amin(-1)
    first, last = enters.clamp(0, 1)[..., None], leaves.clamp(0, 1)[..., None]
    inside = (enters <= leaves) & (enters <= 1) & (leaves >= 0)
    return start + first * direction, start + last * direction, inside


def _cells_inside(
    rectangles: Int[torch.Tensor, "batch 4"], shape: tuple[int, int], map_shape: tuple[int, int]
) -> Bool[torch.Tensor, "batch rows columns"]:
    """Which cells have their centre in a rectangle."""
    lines = []
    for axis in (0, 1):
        centres = (torch.arange(map_shape[axis]) + 0.5) * shape[axis] / map_shape[axis]
        lines.append(
            (centres >= rectangles[:, axis, None]) & (centres < rectangles[:, axis + 2, None])
        )
    return lines[0][:, :, None] & lines[1][:, None, :]


def _squared_distances(
    start: Float[torch.Tensor, "batch segments 2"],
    end: Float[torch.Tensor, "batch segments 2"],
    image_shape: tuple[int, int],
    map_shape: tuple[int, int],
) -> Float[torch.Tensor, "batch segments height width"]:
    """Squared distance of every cell centre to every segment, in square pixels."""
    (height, width), (rows, columns) = image_shape, map_shape
    y = ((torch.arange(rows) + 0.5) * (height / rows) - 0.5)[:, None]
    x = ((torch.arange(columns) + 0.5) * (width / columns) - 0.5)[None, :]
    direction = end - start
    scale = 1 / (direction**2).sum(-1).clamp(min=1e-12)[..., None, None]
    along_x, along_y = direction[..., 0, None, None], direction[..., 1, None, None]
    from_x, from_y = x - start[..., 0, None, None], y - start[..., 1, None, None]
    position = (from_x * (along_x * scale) + from_y * (along_y * scale)).clamp_(0, 1)
    off_x = torch.addcmul(from_x, position, along_x, value=-1)
    off_y = torch.addcmul(from_y, position, along_y, value=-1)
    return off_x.square_().addcmul_(off_y, off_y)


def _max_per_part(
    values: Float[torch.Tensor, "batch segments *map"],
) -> Float[torch.Tensor, "batch 8 *map"]:
    """Maximum over each part's segments."""
    return torch.stack([part.amax(1) for part in values.split(_SEGMENTS_PER_PART, dim=1)], dim=1)
