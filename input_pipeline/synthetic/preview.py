"""A contact sheet: people in rows, each picture with its skeleton and its part maps beside it."""

import itertools

import cv2
import numpy as np

from input_pipeline import keypoints as kp
from input_pipeline.synthetic.plan import Shot, plan_split
from input_pipeline.synthetic.render import render
from input_pipeline.synthetic.settings import Preset

_TILE_ROWS = 192  # every picture is enlarged or reduced to this height
_GAP, _CAPTION = 4, 16
_PAPER = 250

# One colour (red, green, blue) for each of `keypoints.PARTS`.
_PART_COLORS = np.array(
    [
        (240, 200, 60),
        (220, 70, 70),
        (70, 160, 240),
        (40, 90, 200),
        (110, 210, 110),
        (30, 140, 70),
        (220, 120, 230),
        (150, 60, 170),
    ]
)


def _enlarge(image: np.ndarray) -> np.ndarray:
    size = (round(image.shape[1] * _TILE_ROWS / image.shape[0]), _TILE_ROWS)
    return cv2.resize(image, size, interpolation=cv2.INTER_LANCZOS4)


def draw_skeleton(image: np.ndarray, joints: np.ndarray, scale: float) -> np.ndarray:
    """The picture with its pose: limbs in the colours of their parts, hidden joints as rings.

    Args:
        image: (h, w, 3) uint8, already enlarged by `scale`.
        joints: (17, 3) keypoints of the picture before it was enlarged.
        scale: enlargement.

    Returns:
        A new (h, w, 3) uint8.
    """
    drawn = (image * 0.6).astype(np.uint8)
    at = np.rint(((joints[:, :2] + 0.5) * scale - 0.5) * 16).astype(int)
    for part, color in zip(kp.PARTS, _PART_COLORS.tolist(), strict=True):
        for start, end in part.segments:
            if max(start, end) < kp.NUM_JOINTS and min(joints[start, 2], joints[end, 2]) >= 0.2:
                cv2.line(drawn, at[start].tolist(), at[end].tolist(), color, 2, cv2.LINE_AA, 4)
    for point, confidence in zip(at.tolist(), joints[:, 2], strict=True):
        if confidence >= 0.2:
            cv2.circle(drawn, point, 40, (255, 255, 255), -1, cv2.LINE_AA, 4)
        elif confidence > 0:
            cv2.circle(drawn, point, 44, (255, 90, 90), 1, cv2.LINE_AA, 4)
    return drawn


def _draw_part_maps(
    image: np.ndarray, joints: np.ndarray, image_shape: tuple[int, int]
) -> np.ndarray:
    """The training's own part maps, at 4 pixels a cell, in their colours over a grey picture."""
    # The maps are TensorFlow operations; the processes that render never import this.
    from input_pipeline.pose_maps import part_maps

    cells = image_shape[0] // 4, image_shape[1] // 4
    maps, _ = part_maps(
        joints[None], image_shape=image_shape, map_shape=cells, sigma=0.035, threshold=0.2
    )
    maps = maps[0].numpy()
    strongest = maps.max(axis=2, keepdims=True)
    color = _PART_COLORS[maps.argmax(axis=2)] * strongest
    size = image.shape[1], image.shape[0]
    color, strongest = cv2.resize(color, size), cv2.resize(strongest, size)[..., None]
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None] * 0.5
    return np.clip(grey * (1 - 0.8 * strongest) + 0.8 * color, 0, 255).astype(np.uint8)


def _tile(preset: Preset, shot: Shot) -> np.ndarray:
    """Picture, skeleton and part maps side by side, over a caption."""
    result = render(preset, shot)
    encoded = np.frombuffer(result.jpeg, np.uint8)
    pixels = np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB))
    image = _enlarge(pixels)
    skeleton = draw_skeleton(image, result.keypoints, _TILE_ROWS / preset.image_shape[0])
    parts = _draw_part_maps(image, result.keypoints, preset.image_shape)
    row = np.hstack([image, skeleton, parts])
    caption = np.full((_CAPTION, row.shape[1], 3), _PAPER, np.uint8)
    text = f"{shot.person:04d} cam {shot.camera + 1}"
    if result.occlusion:
        text += f"  hidden {result.occlusion:.0%}"
    cv2.putText(caption, text, (2, 11), cv2.FONT_HERSHEY_SIMPLEX, 0.36, (40,) * 3, 1, cv2.LINE_AA)
    tile = np.vstack([row, caption])
    return cv2.copyMakeBorder(tile, 0, 0, 0, _GAP, cv2.BORDER_CONSTANT, value=(_PAPER,) * 3)


def contact_sheet(preset: Preset, split: str, people: int, images: int) -> np.ndarray:
    """Draws the sheet.

    Args:
        preset: the data set.
        split: one of `plan.SPLITS`.
        people: rows: how many identities.
        images: columns: how many pictures of each, at most.

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
    """Writes the sheet as a picture file; the name's ending decides the format.

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
