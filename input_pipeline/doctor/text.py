"""The diagnosis as text: tables (which the page shows, too), findings and the verdict."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from input_pipeline.doctor.diagnosis import Diagnosis
from input_pipeline.doctor.duplicates import repeats
from input_pipeline.doctor.statistics import Dataset, Listing, Protocol, Split, Survey
from input_pipeline.keypoints import JOINTS
from input_pipeline.validation import Findings
from pgfl_jax.report.page import Table

_SHOWN = 10  # lines of each listing
_LEFT = "left_"
_RANGE = "(min / median / max)"


def split_table(survey: Survey, dataset: Dataset) -> Table:
    """A column for each split."""
    columns = [split_facts(survey, split) for split in dataset.splits.values()]
    return Table(
        header=["", *dataset.splits],
        rows=[[name, *(column[name] for column in columns)] for name in columns[0]],
    )


def split_facts(survey: Survey, split: Split) -> dict[str, str]:
    """The counts of a split."""
    catalog = split.catalog
    per_identity = np.bincount(catalog.labels)
    pairs = np.unique(np.stack([catalog.labels, catalog.cameras], axis=1), axis=0)
    cameras_each = np.bincount(pairs[:, 0])
    sizes = catalog.image_sizes[catalog.image_sizes.all(axis=1)]
    return {
        "images": f"{len(catalog):,}",
        "unreadable files": f"{len(split.unreadable):,}",
        "repeated images": f"{repeats(catalog.image_sha256).sum():,}",
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
    """How many images have a pose, from which file, and the mean confidences of the joints."""
    catalog, count = split.catalog, len(split.catalog)
    drawn = catalog.drawn(survey.config.data.pose.threshold)
    facts = {"with a pose": _share(int(drawn.sum()), count)}
    if any(one.catalog.part_maps is not None for one in survey.splits):
        maps = np.zeros((count, 1)) if catalog.part_maps is None else catalog.part_maps
        facts["as part maps"] = _share(int(maps.reshape(count, -1).any(axis=1).sum()), count)
    for (path, _), matches in zip(survey.poses, split.matches, strict=True):
        facts[f"known to {Path(path).name}"] = _share(matches, count)
    posed = catalog.keypoints[catalog.keypoints[..., 2].any(axis=1)]
    mean = posed[..., 2].mean(axis=0) if len(posed) else np.full(len(JOINTS), np.nan)
    confidence = dict(zip(JOINTS, (f"{value:.2f}" for value in mean), strict=True))
    facts["confidence: nose"] = confidence["nose"] if len(posed) else "–"
    for joint in (name.removeprefix(_LEFT) for name in JOINTS if name.startswith(_LEFT)):
        both = f"{confidence[_LEFT + joint]} / {confidence['right_' + joint]}"
        facts[f"confidence: {joint} (left / right)"] = both if len(posed) else "–"
    return facts


def protocol_table(dataset: Dataset) -> Table:
    """A column for each protocol."""
    columns = [_protocol_facts(protocol) for protocol in dataset.protocols]
    return Table(
        header=["protocol", *(protocol.name for protocol in dataset.protocols)],
        rows=[[name, *(f"{column[name]:,}" for column in columns)] for name in columns[0]],
    )


def _protocol_facts(protocol: Protocol) -> dict[str, int]:
    """The counts of a query split and its gallery."""
    query, gallery = protocol.query.catalog, protocol.gallery.catalog
    copied, junk = protocol.copies
    strangers = ~np.isin(gallery.identities, query.identities)
    return {
        "queries": len(query),
        "without a possible match": len(protocol.matchless),
        "also in the gallery": int(copied.sum()),
        "with junk copies only": int(junk.sum()),
        "gallery images": len(gallery),
        "distractor images": int(strangers.sum()),
        "distractor identities": len(np.unique(gallery.identities[strangers])),
    }


def _range(values: np.ndarray) -> str:
    """Minimum, median and maximum.

    >>> _range(np.array([1, 2, 9000]))
    '1 / 2 / 9,000'
    """
    if not len(values):
        return "–"
    return f"{values.min():,} / {np.median(values):,g} / {values.max():,}"


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({part / whole:.1%})" if part < whole else f"{part:,} (100%)"


def format_text(diagnosis: Diagnosis) -> str:
    """Tables, listings, findings and the verdict."""
    survey, findings = diagnosis.survey, diagnosis.findings
    blocks = [*_tables(survey), *map(_format_listing, diagnosis.listings)]
    for title, lines in (("warnings", findings.warnings), ("notes", findings.notes)):
        if lines:
            blocks.append("\n".join([title, *(f"  - {line}" for line in lines)]))
    blocks.append("\n".join([verdict(diagnosis), *(f"  - {line}" for line in findings.errors)]))
    return "\n\n".join(blocks)


def verdict(diagnosis: Diagnosis) -> str:
    """One line, such as ``ready: …`` or ``2 problems:``."""
    survey, findings = diagnosis.survey, diagnosis.findings
    if findings.errors:
        return f"{_count(findings, 'errors', 'problem')}:"
    train = survey.datasets[0].splits.get("train")
    scored = sum(len(dataset.protocols) for dataset in survey.datasets if dataset.scored)
    line = f"{scored} protocol{'s' * (scored != 1)} to score"
    if train is None:
        line = f"ready: {line}, no images to train on"
    else:
        images, people = len(train.catalog), train.catalog.num_identities
        line = f"ready: {images:,} images of {people:,} people to train on, {line}"
    return f"{line}; {_count(findings, 'warnings', 'warning')}" if findings.warnings else line


def _count(findings: Findings, kind: str, word: str) -> str:
    number = len(getattr(findings, kind))
    return f"{number} {word}{'s' * (number != 1)}"


def _tables(survey: Survey) -> Iterator[str]:
    for dataset in survey.datasets:
        source = f" (prepared from {dataset.source})" if dataset.source else ""
        title = f"{dataset.name}{source}"
        if dataset.splits:
            yield f"{title}\n{format_table(split_table(survey, dataset))}"
        if dataset.protocols:
            yield format_table(protocol_table(dataset))


def format_table(table: Table) -> str:
    """Columns as wide as their widest cell; the first is aligned left, the others right.

    >>> print(format_table(Table(["split", "images"], [["train", "12"], ["query", "3"]])))
    split  images
    train      12
    query       3
    """
    lines = [table.header, *table.rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        ).rstrip()
        for line in lines
    )


def _format_listing(listing: Listing) -> str:
    lines = [f"{listing.title}: {len(listing.lines):,}"]
    lines += [f"  {line}" for line in listing.lines[:_SHOWN]]
    if len(listing.lines) > _SHOWN:
        lines.append(f"  and {len(listing.lines) - _SHOWN:,} more, in the page")
    return "\n".join(lines)
