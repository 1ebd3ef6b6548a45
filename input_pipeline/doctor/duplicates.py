"""Images and identities that stand where they should not stand twice."""

from collections.abc import Iterator

import numpy as np

from input_pipeline.checks import Findings, some
from input_pipeline.doctor import copies
from input_pipeline.doctor.examinations import Found, unless_used
from input_pipeline.doctor.survey import Dataset, Listing, Split, Survey


def within_splits(survey: Survey) -> Found:
    """The same image several times in a split; under several identities it is a warning."""
    for split in survey.splits:
        codes, identities = survey.codes[split], split.catalog.identities
        again = np.flatnonzero(copies.repeats(codes))
        if not again.size:
            continue
        line = f"{split.label}: {again.size:,} images repeat another one of the split"
        wrong = np.flatnonzero(copies.contradictions(codes, identities))
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
        originals = copies.first_rows(codes, codes[again])
        yield Listing(f"{split.label}: repeated images", _pairs(split, again, split, originals))


def test_images_in_training(survey: Survey) -> Found:
    """Test images that stand in a training split, too: their scores would mean nothing."""
    for train, test in _train_and_test(survey):
        originals = copies.first_rows(survey.codes[train], survey.codes[test])
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
        for protocol, name in dataset.protocols.items():
            yield from _queries_in_gallery(survey, dataset, protocol, dataset.splits[name])


def _queries_in_gallery(survey: Survey, dataset: Dataset, protocol: str, query: Split) -> Found:
    gallery = dataset.splits["gallery"]
    codes = survey.codes[query], survey.codes[gallery]
    copied, junk = copies.queries_in_gallery(query.catalog, gallery.catalog, *codes)
    if not copied.any():
        return
    ranked = np.flatnonzero(copied & ~junk)
    line = (
        f"{dataset.name} {protocol}: {copied.sum():,} queries stand in the gallery, too; of "
        f"{junk.sum():,} the copies are junk (same identity and camera) and leave the ranking"
    )
    if ranked.size:
        line += (
            f", of {ranked.size:,} they are ranked and distort the scores: "
            f"{some(query.catalog.filenames[ranked])}; remove one of each pair"
        )
        yield unless_used(Findings(warnings=[line]), query.used)
        originals = copies.first_rows(codes[1], codes[0][ranked])
        title = f"{dataset.name} {protocol}: queries whose copies in the gallery are ranked"
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
