"""A contact sheet: one person per row, each picture beside its skeleton and part maps."""

import itertools

import cv2
import numpy as np
from jaxtyping import UInt8

from input_pipeline import drawing
from input_pipeline.synthetic.plan import Shot, plan_split
from input_pipeline.synthetic.render import render
from input_pipeline.synthetic.settings import Preset
from pgfl_jax.report.painting import paint_parts

_TILE_ROWS = 192  # height of every picture
_GAP, _CAPTION = 4, 16
_PAPER = 250


def _tile(preset: Preset, shot: Shot) -> np.ndarray:
    """Picture, skeleton and part maps side by side, over a caption."""
    result = render(preset, shot)
    encoded = np.frombuffer(result.jpeg, np.uint8)
    pixels = np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB))
    image = drawing.scale_to_rows(pixels, _TILE_ROWS)
    skeleton = drawing.draw_skeleton(image, result.keypoints, _TILE_ROWS / preset.image_shape[0])
    maps = drawing.keypoint_maps(result.keypoints, preset.image_shape)
    parts = paint_parts(image, maps)
    row = np.hstack([image, skeleton, parts])
    caption = np.full((_CAPTION, row.shape[1], 3), _PAPER, np.uint8)
    text = f"{shot.person:04d} cam {shot.camera + 1}"
    if result.occlusion:
        text += f"  hidden {result.occlusion:.0%}"
    cv2.putText(caption, text, (2, 11), cv2.FONT_HERSHEY_SIMPLEX, 0.36, (40,) * 3, 1, cv2.LINE_AA)
    tile = np.vstack([row, caption])
    return cv2.copyMakeBorder(tile, 0, 0, 0, _GAP, cv2.BORDER_CONSTANT, value=(_PAPER,) * 3)


def contact_sheet(
    preset: Preset, split: str, people: int, images: int
) -> UInt8[np.ndarray, "height width 3"]:
    """Draw the sheet.

    Args:
        preset: the data set.
        split: one of ``plan.SPLITS``.
        people: number of rows, one per identity.
        images: number of columns, the most pictures of each identity.

    Returns:
        (height, width, 3) uint8, red-green-blue.
    """
    groups = itertools.groupby(plan_split(preset, split), key=lambda shot: shot.person)
    rows = []
    for _, shots in itertools.islice(groups, people):
        tiles = [_tile(preset, shot) for shot in itertools.islice(shots, images)]
        blank = np.full_like(tiles[0], _PAPER)
        rows.append(np.hstack(tiles + [blank] * (images - len(tiles))))
    return np.vstack(rows)


def save_contact_sheet(path: str, preset: Preset, split: str, people: int, images: int) -> None:
    """Write the sheet as a picture file, in the format of the name's suffix.

    Raises:
        OSError: the file cannot be written.
    """
    sheet = contact_sheet(preset, split, people, images)
    try:
        written = cv2.imwrite(path, sheet[..., ::-1])
    except cv2.error:
        written = False
    if not written:
        raise OSError(f"cannot write the contact sheet {path!r}: name a .png or .jpg in a folder")
