"""Images and identities that occur more than once."""

from collections.abc import Iterator

import numpy as np

from input_pipeline import validation
from input_pipeline.copies import (
    check_copied_queries,
    check_people,
    check_repeats,
    first_rows,
    repeats,
)
from input_pipeline.doctor.statistics import Found, Listing, Protocol, Split, Survey, unless_used


def within_splits(survey: Survey) -> Found:
    """Images that occur more than once in a split; a warning if under different labels."""
    for split in survey.splits:
        digests = split.catalog.image_sha256
        again = np.flatnonzero(repeats(digests))
        if again.size:
            yield unless_used(check_repeats(split.label, split.catalog), split.used)
            originals = first_rows(digests, digests[again])
            yield Listing(f"{split.label}: repeated images", _pairs(split, again, split, originals))


def test_images_in_training(survey: Survey) -> Found:
    """Test images that are also in a training split: their scores would be meaningless."""
    for train, test in _train_and_test(survey):
        digests = train.catalog.image_sha256
        found = validation.check_separate(train.label, digests, test.label, test.catalog)
        yield unless_used(found, train.used and test.used)
        originals = first_rows(digests, test.catalog.image_sha256)
        rows = np.flatnonzero(originals >= 0)
        if rows.size:
            title = f"{test.label}: images that are also in {train.label}"
            yield Listing(title, _pairs(test, rows, train, originals[rows]))


def _train_and_test(survey: Survey) -> Iterator[tuple[Split, Split]]:
    """Each training split with the test splits of its set; if it is used, with all test splits."""
    for dataset in survey.datasets:
        train = dataset.splits.get("train")
        if train is not None:
            for other in survey.datasets:
                if other is dataset or train.used:
                    yield from ((train, test) for test in other.test_splits)


def queries_in_galleries(survey: Survey) -> Found:
    """Queries that are also in their gallery: harmless if the junk rule removes the copies."""
    for dataset in survey.datasets:
        for protocol in dataset.protocols:
            yield from _queries_in_gallery(protocol)


def _queries_in_gallery(protocol: Protocol) -> Found:
    query, gallery = protocol.query, protocol.gallery
    copied, junk = protocol.copies
    yield unless_used(
        check_copied_queries(protocol.label, query.catalog.filenames, copied, junk), query.used
    )
    ranked = np.flatnonzero(copied & ~junk)
    if ranked.size:
        digests = query.catalog.image_sha256[ranked]
        originals = first_rows(gallery.catalog.image_sha256, digests)
        title = f"{protocol.label}: queries whose copies in the gallery are ranked"
        yield Listing(title, _pairs(query, ranked, gallery, originals))


def shared_identities(survey: Survey) -> Found:
    """People who are in both the training split and a test split of the same set."""
    for dataset in survey.datasets:
        train = dataset.splits.get("train")
        if train is None:
            continue
        for test in dataset.test_splits:
            people = train.catalog.identities
            found = check_people(people, test.label, test.catalog, test.identities)
            yield unless_used(found, train.used and test.used)


def _pairs(split: Split, rows: np.ndarray, other: Split, originals: np.ndarray) -> list[str]:
    """One line per image, with another image of the same content."""
    return [
        f"{split.describe(row)} = {other.describe(original)}"
        for row, original in zip(rows, originals, strict=True)
    ]
