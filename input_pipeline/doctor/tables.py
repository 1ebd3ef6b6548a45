"""The numbers of a data set as tables of text, for the terminal and for the page."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from input_pipeline.checks import queries_without_match
from input_pipeline.doctor.copies import queries_in_gallery, repeats
from input_pipeline.doctor.survey import Dataset, Split, Survey
from input_pipeline.keypoints import JOINTS

_LEFT = "left_"
_RANGE = "(min / median / max)"


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells of text; the first column names the rows."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def split_table(survey: Survey, dataset: Dataset) -> Table:
    """A column for each split."""
    columns = [split_facts(survey, split) for split in dataset.splits.values()]
    return Table(
        header=["", *dataset.splits],
        rows=[[name, *(column[name] for column in columns)] for name in columns[0]],
    )


def split_facts(survey: Survey, split: Split) -> dict[str, str]:
    """What there is to count in a split."""
    catalog = split.catalog
    per_identity = np.bincount(catalog.labels)
    pairs = np.unique(np.stack([catalog.labels, catalog.cameras], axis=1), axis=0)
    cameras_each = np.bincount(pairs[:, 0])
    sizes = catalog.image_sizes[catalog.image_sizes.all(axis=1)]
    return {
        "images": f"{len(catalog):,}",
        "unreadable files": f"{len(split.unreadable):,}",
        "repeated images": f"{repeats(survey.codes[split]).sum():,}",
        f"height {_RANGE}": _range(sizes[:, 0]),
        f"width {_RANGE}": _range(sizes[:, 1]),
        "different sizes": f"{len(np.unique(sizes, axis=0)):,}",
        "identities": f"{catalog.num_identities:,}",
        "with one image": f"{(per_identity == 1).sum():,}",
        "with one camera": f"{(cameras_each == 1).sum():,}",
        f"images per identity {_RANGE}": _range(per_identity),
        "cameras": f"{len(np.unique(catalog.cameras)):,}",
        **_pose_facts(survey, split),
    }


def _pose_facts(survey: Survey, split: Split) -> dict[str, str]:
    """How many images have a pose, from where, and how certain its joints are."""
    catalog, count = split.catalog, len(split.catalog)
    facts = {"with a pose": _share(int(catalog.has_pose.sum()), count)}
    if any(one.catalog.part_maps is not None for one in survey.splits):
        maps = np.zeros((count, 1)) if catalog.part_maps is None else catalog.part_maps
        facts["as part maps"] = _share(int(maps.reshape(count, -1).any(axis=1).sum()), count)
    for (path, _), matches in zip(survey.poses, split.matches, strict=True):
        facts[f"known to {Path(path).name}"] = _share(matches, count)
    drawn = catalog.keypoints[catalog.keypoints.any(axis=(1, 2))]
    mean = drawn[..., 2].mean(axis=0) if len(drawn) else np.full(len(JOINTS), np.nan)
    confidence = dict(zip(JOINTS, (f"{value:.2f}" for value in mean), strict=True))
    facts["confidence: nose"] = confidence["nose"] if len(drawn) else "–"
    for joint in (name.removeprefix(_LEFT) for name in JOINTS if name.startswith(_LEFT)):
        both = f"{confidence[_LEFT + joint]} / {confidence['right_' + joint]}"
        facts[f"confidence: {joint} (left / right)"] = both if len(drawn) else "–"
    return facts


def protocol_table(survey: Survey, dataset: Dataset) -> Table:
    """A column for each protocol."""
    columns = [
        _protocol_facts(survey, dataset.splits[query], dataset.splits["gallery"])
        for query in dataset.protocols.values()
    ]
    return Table(
        header=["protocol", *dataset.protocols],
        rows=[[name, *(f"{column[name]:,}" for column in columns)] for name in columns[0]],
    )


def _protocol_facts(survey: Survey, query: Split, gallery: Split) -> dict[str, int]:
    """What there is to count in a query split and its gallery."""
    codes = survey.codes[query], survey.codes[gallery]
    copied, junk = queries_in_gallery(query.catalog, gallery.catalog, *codes)
    strangers = ~np.isin(gallery.catalog.identities, query.catalog.identities)
    return {
        "queries": len(query.catalog),
        "without a possible match": len(queries_without_match(query.catalog, gallery.catalog)),
        "in the gallery, too": int(copied.sum()),
        "of these all copies junk": int(junk.sum()),
        "gallery images": len(gallery.catalog),
        "distractor images": int(strangers.sum()),
        "distractor identities": len(np.unique(gallery.catalog.identities[strangers])),
    }


def _range(values: np.ndarray) -> str:
    """``min / median / max``."""
    if not len(values):
        return "–"
    return f"{values.min():,} / {np.median(values):,g} / {values.max():,}"


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({part / whole:.1%})" if part < whole else f"{part:,} (100%)"
