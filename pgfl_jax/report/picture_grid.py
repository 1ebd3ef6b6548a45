"""What the main branch looks at in a few query images, as one picture for TensorBoard."""

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from pgfl_jax.embedder import Embedder
from pgfl_jax.experiment import Experiment
from pgfl_jax.models import main_branch
from pgfl_jax.report.attention import relative
from pgfl_jax.report.feature_maps import FeatureMaps, batch_maps
from pgfl_jax.report.painting import paint_energy, paint_parts
from pgfl_jax.report.thumbnails import HEIGHT
from pgfl_jax.retrieval.protocols import Batch
from pgfl_jax.train_state import TrainState

_COLUMNS, _GAP = 2, 4


def picture_grid(
    experiment: Experiment, state: TrainState, batch: Batch
) -> UInt8[np.ndarray, "height width 3"]:
    """Each image, the maps of its pose, those that the main branch predicts, and its energy.

    A panel for what there is none of is left out. The first local device computes alone, so that no
    other process need take part.

    Args:
        experiment: the network.
        state: its parameters; the main branch's are whole on every device.
        batch: ``images``, and ``part_maps`` and ``visibility`` if poses were read.
    """
    variables = main_branch({"params": state.params, "batch_stats": state.batch_stats})
    local = jax.tree.map(lambda leaf: leaf.addressable_data(0), variables)
    embedder = Embedder(experiment.config, experiment.model, local, int(state.step))
    maps = batch_maps(embedder, batch, quick=True)
    cells = [
        np.concatenate(_panels(image, maps, row), axis=1)
        for row, image in enumerate(batch["images"])
    ]
    height, width, _ = cells[0].shape
    rows = -(-len(cells) // _COLUMNS)
    grid = np.zeros((rows, height + _GAP, _COLUMNS, width + _GAP, 3), np.uint8)
    for place, cell in enumerate(cells):
        grid[place // _COLUMNS, :height, place % _COLUMNS, :width] = cell
    return grid.reshape(rows * (height + _GAP), -1, 3)[:-_GAP, :-_GAP]


def _panels(
    image: UInt8[np.ndarray, "height width 3"], maps: FeatureMaps, row: int
) -> list[UInt8[np.ndarray, "rows columns 3"]]:
    """An image, not higher than a thumbnail, with the maps painted over it."""
    shown = Image.fromarray(image)
    shown.thumbnail((4 * HEIGHT, HEIGHT), Image.Resampling.BICUBIC)
    picture = np.asarray(shown)
    painted = [
        paint_parts(picture, several[row])
        for several in (maps.part_maps, maps.predicted)
        if several is not None
    ]
    energy = relative(maps.energy[row].sum(axis=-1))
    return [picture, *painted, paint_energy(picture, energy)]
