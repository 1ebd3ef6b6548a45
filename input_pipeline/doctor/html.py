"""The diagnosis as one HTML file with sample images: no scripts, nothing fetched."""

import base64
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import cv2
import numpy as np
import tensorflow as tf
from jaxtyping import Int

from input_pipeline import augment, drawing
from input_pipeline.catalog import Catalog
from input_pipeline.doctor.diagnosis import Diagnosis
from input_pipeline.doctor.statistics import Dataset, Listing, Split, Survey
from input_pipeline.doctor.text import Table, protocol_table, split_table, verdict
from pgfl_jax.config import PoseConfig

_SIDE = 192  # each picture fits into a square of this many pixels
_GAP, _GREY = 4, 128

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --line: #8885; --good: #2a7d4f; --bad: #c0392b; }}
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 72rem; padding: 1rem; }}
h1, h2, h3 {{ line-height: 1.2; overflow-wrap: anywhere; }}
h2 {{ margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: 1rem; }}
.verdict {{ border-left: .4rem solid var(--good); padding: .5rem 1rem; background: #8881; }}
.verdict.bad {{ border-color: var(--bad); }}
.verdict p {{ margin: 0; font-weight: 600; }}
li {{ overflow-wrap: anywhere; }}
.table {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .2rem .7rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }}
th:first-child, td:first-child {{ text-align: left; }}
.strip {{ display: flex; flex-wrap: wrap; gap: .8rem; }}
figure {{ margin: 0; width: min(100%, 300px); }}
figure img {{ display: block; max-width: 100%; height: auto; }}
figcaption {{ font-size: .8rem; overflow-wrap: anywhere; }}
summary {{ cursor: pointer; overflow-wrap: anywhere; }}
pre {{ overflow-x: auto; font-size: .85rem; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def write_page(diagnosis: Diagnosis, path: Path) -> None:
    """Write the page atomically.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".tmp")
    try:
        beside.write_text(format_page(diagnosis), encoding="utf-8", errors="backslashreplace")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def format_page(diagnosis: Diagnosis) -> str:
    """The page as HTML."""
    survey = diagnosis.survey
    title = f"Data of {survey.config.data.dataset}"
    body = [f"<h1>{escape(title)}</h1>", _verdict(diagnosis)]
    for heading, lines in (
        ("Warnings", diagnosis.findings.warnings),
        ("Notes", diagnosis.findings.notes),
    ):
        if lines:
            body.append(f"<h3>{heading}</h3>\n{_list(lines)}")
    for dataset in survey.datasets:
        body += _dataset(survey, dataset)
    if diagnosis.listings:
        body += ["<h2>Files</h2>", *map(_listing, diagnosis.listings)]
    return _PAGE.format(title=escape(title), body="\n".join(body))


def _verdict(diagnosis: Diagnosis) -> str:
    errors = diagnosis.findings.errors
    kind, problems = (" bad", _list(errors)) if errors else ("", "")
    return f'<div class="verdict{kind}"><p>{escape(verdict(diagnosis))}</p>{problems}</div>'


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>\n" for line in lines) + "</ul>"


def _dataset(survey: Survey, dataset: Dataset) -> Iterator[str]:
    """Tables and samples of a data set."""
    yield f"<h2>{escape(dataset.name)}</h2>"
    if dataset.source:
        yield f"<p>Prepared from {escape(dataset.source)}</p>"
    if not dataset.splits:
        yield "<p>It could not be opened.</p>"
        return
    yield _table(split_table(survey, dataset))
    if dataset.protocols:
        yield "<h3>Protocols</h3>"
        yield _table(protocol_table(dataset))
    for split in dataset.splits.values():
        yield _samples(survey, split)


def _table(table: Table) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    rows = "\n".join([row(table.header, "th"), *(row(cells, "td") for cells in table.rows)])
    return f'<div class="table"><table>\n{rows}\n</table></div>'


def _samples(survey: Survey, split: Split) -> str:
    """A strip of pictures, each with image, skeleton and part maps."""
    figures = []
    for row in choose_samples(split):
        jpeg = draw_sample(split.catalog, row, survey.config.data.pose)
        data = base64.b64encode(jpeg).decode()
        no_pose = "" if split.catalog.has_pose[row] else ", no pose"
        text = escape(split.describe(row) + no_pose)
        figures.append(
            f'<figure><img src="data:image/jpeg;base64,{data}" alt="{text}">'
            f"<figcaption>{text}</figcaption></figure>"
        )
    strip = "\n".join(figures)
    return f'<h3>{escape(split.name)}</h3>\n<div class="strip">\n{strip}\n</div>'


def _listing(listing: Listing) -> str:
    lines = escape("\n".join(listing.lines))
    title = escape(f"{listing.title}: {len(listing.lines):,}")
    return f"<details><summary>{title}</summary><pre>{lines}</pre></details>"


def choose_samples(split: Split, count: int = 12) -> list[int]:
    """Rows of readable images, spread over the identities and over their cameras.

    Args:
        split: the split.
        count: maximum number of rows.

    Returns:
        Rows in the order of their identities; a function of the split only.
    """
    catalog = split.catalog
    readable = np.ones(len(catalog), bool)
    readable[split.unreadable] = False
    identities = np.unique(catalog.identities[readable])
    total = len(identities)
    if not total:
        return []
    chosen = []
    for turn in range(count):
        position = turn * total // count if total >= count else turn % total
        members = np.flatnonzero(readable & (catalog.identities == identities[position]))
        members = members[_cameras_in_turn(catalog.cameras[members])]
        chosen.append((position, int(members[(turn % total + turn // total) % len(members)])))
    return [row for _, row in sorted(set(chosen))]


def _cameras_in_turn(cameras: Int[np.ndarray, " images"]) -> Int[np.ndarray, " images"]:
    """The order with the first image of every camera, then the second of each, and so on.

    >>> _cameras_in_turn(np.array([1, 1, 1, 2, 2]))
    array([0, 3, 1, 4, 2])
    """
    order = np.argsort(cameras, kind="stable")
    rank = np.empty(len(cameras), np.int64)
    rank[order] = np.arange(len(cameras)) - np.searchsorted(cameras[order], cameras[order])
    return np.lexsort((cameras, rank))


def draw_sample(catalog: Catalog, row: int, pose: PoseConfig) -> bytes:
    """Image, skeleton and part maps side by side, as JPEG.

    Args:
        catalog: the split.
        row: an image that can be decoded.
        pose: how to draw the part maps.
    """
    # Decoded as in training: OpenCV would rotate an image by its EXIF, and the pose would not fit.
    image = augment.decode(tf.constant(catalog.images[row])).numpy()
    height, width = image.shape[:2]
    image = drawing.scale_to_rows(image, max(1, min(_SIDE, round(_SIDE * height / width))))
    scale = np.array(image.shape[1::-1]) / (width, height)
    joints = catalog.keypoints[row].copy()
    joints[:, :2] = (joints[:, :2] + 0.5) * scale.astype(np.float32) - 0.5
    # A joint far outside would overflow OpenCV's coordinates.
    joints[:, :2] = joints[:, :2].clip(-10 * _SIDE, 10 * _SIDE)
    given = None if catalog.part_maps is None else catalog.part_maps[row]
    if given is not None and given.any():
        maps = given.astype(np.float32) / 255
    else:
        shape = image.shape[0], image.shape[1]
        maps = drawing.keypoint_maps(joints, shape, sigma=pose.sigma, threshold=pose.threshold)
    gap = np.full((len(image), _GAP, 3), _GREY, np.uint8)
    skeleton = drawing.draw_skeleton(image, joints, 1.0, pose.threshold)
    panels = np.hstack([image, gap, skeleton, gap, drawing.draw_part_maps(image, maps)])
    return cv2.imencode(".jpg", panels[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, 82))[1].tobytes()
