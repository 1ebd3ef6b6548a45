"""Images and identities that stand where they should not stand twice."""

from collections.abc import Iterator

import numpy as np

from input_pipeline.doctor.statistics import Found, Listing, Protocol, Split, Survey, unless_used
from input_pipeline.validation import Findings, some


def within_splits(survey: Survey) -> Found:
    """The same image several times in a split; under several identities it is a warning."""
    for split in survey.splits:
        digests, identities = split.catalog.image_sha256, split.catalog.identities
        again = np.flatnonzero(repeats(digests))
        if not again.size:
            continue
        line = f"{split.label}: {again.size:,} images repeat another one of the split"
        wrong = np.flatnonzero(contradictions(digests, identities))
        if wrong.size:
            found = Findings(
                warnings=[
                    f"{line}; {wrong.size:,} stand under several identities: "
                    f"{some(split.catalog.filenames[wrong])}; remove the wrong ones"
                ]
            )
        else:
            found = Findings(notes=[f"{line}, always under its identity"])
        yield unless_used(found, split.used)
        originals = first_rows(digests, digests[again])
        yield Listing(f"{split.label}: repeated images", _pairs(split, again, split, originals))


def test_images_in_training(survey: Survey) -> Found:
    """Test images that stand in a training split, too: their scores would mean nothing."""
    for train, test in _train_and_test(survey):
        originals = first_rows(train.catalog.image_sha256, test.catalog.image_sha256)
        rows = np.flatnonzero(originals >= 0)
        if rows.size:
            found = Findings(
                errors=[
                    f"test images in training: {rows.size:,} images of {test.label} stand in "
                    f"{train.label}, too: {some(test.catalog.filenames[rows])}; remove them from "
                    "one of the two, and prepare that data set anew"
                ]
            )
            yield unless_used(found, train.used and test.used)
            title = f"{test.label}: images that stand in {train.label}, too"
            yield Listing(title, _pairs(test, rows, train, originals[rows]))


def _train_and_test(survey: Survey) -> Iterator[tuple[Split, Split]]:
    """Training splits with the test splits of their own set, and with all if they are used."""
    for dataset in survey.datasets:
        train = dataset.splits.get("train")
        if train is not None:
            for other in survey.datasets:
                if other is dataset or train.used:
                    yield from ((train, test) for test in other.test_splits)


def queries_in_galleries(survey: Survey) -> Found:
    """Queries that are in their gallery: no harm as long as the junk rule takes them out."""
    for dataset in survey.datasets:
        for protocol in dataset.protocols:
            yield from _queries_in_gallery(protocol)


def _queries_in_gallery(protocol: Protocol) -> Found:
    query, gallery = protocol.query, protocol.gallery
    copied, junk = protocol.copies
    if not copied.any():
        return
    ranked = np.flatnonzero(copied & ~junk)
    line = (
        f"{protocol.label}: {copied.sum():,} queries stand in the gallery, too; of "
        f"{junk.sum():,} the copies are junk (same identity and camera) and leave the ranking"
    )
    if ranked.size:
        line += (
            f", of {ranked.size:,} they are ranked and distort the scores: "
            f"{some(query.catalog.filenames[ranked])}; remove one of each pair"
        )
        yield unless_used(Findings(warnings=[line]), query.used)
        digests = query.catalog.image_sha256[ranked]
        originals = first_rows(gallery.catalog.image_sha256, digests)
        title = f"{protocol.label}: queries whose copies in the gallery are ranked"
        yield Listing(title, _pairs(query, ranked, gallery, originals))
    else:
        yield Findings(notes=[f"{line}, as it should be"])


def shared_identities(survey: Survey) -> Found:
    """People of the training split who are in the test splits of the same set."""
    for dataset in survey.datasets:
        train = dataset.splits.get("train")
        if train is None:
            continue
        for test in dataset.test_splits:
            shared = np.intersect1d(train.catalog.identities, test.catalog.identities)
            if shared.size:
                found = Findings(
                    warnings=[
                        f"{test.label}: {shared.size:,} of {test.catalog.num_identities:,} "
                        f"identities are in train, too: {some(shared)}; if the numbers mean the "
                        "same people, the scores are not those of people never seen before"
                    ]
                )
                yield unless_used(found, train.used and test.used)


def _pairs(split: Split, rows: np.ndarray, other: Split, originals: np.ndarray) -> list[str]:
    """A line for each image and one with the same content."""
    return [
        f"{split.describe(row)} = {other.describe(original)}"
        for row, original in zip(rows, originals, strict=True)
    ]


def first_rows(digests: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The first row of ``digests`` (N,) with each of those ``wanted`` (M,); -1 for none."""
    known, rows = np.unique(digests, return_index=True)
    nearest = np.searchsorted(known, wanted).clip(max=len(known) - 1)
    return np.where(known[nearest] == wanted, rows[nearest], -1)


def repeats(digests: np.ndarray) -> np.ndarray:
    """(N,) bool: images whose content an earlier image of the split has, too."""
    return first_rows(digests, digests) != np.arange(len(digests))


def contradictions(digests: np.ndarray, identities: np.ndarray) -> np.ndarray:
    """(N,) bool: images whose content stands in the split under several identities."""
    originals = first_rows(digests, digests)
    pairs = np.unique(np.stack([originals, identities], axis=1), axis=0)
    return np.bincount(pairs[:, 0], minlength=len(digests))[originals] > 1
