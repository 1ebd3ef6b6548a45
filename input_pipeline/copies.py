"""Images and identities that occur more than once; training and the doctor share these checks."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int, Shaped

from input_pipeline.catalog import Catalog
from input_pipeline.validation import Findings, some


def check_repeats(name: str, split: Catalog) -> Findings:
    """Find images that repeat another image of a split, by content.

    Args:
        name: of the data set and split, for the messages.
        split: any split.

    Returns:
        A warning if a content occurs under different identities or cameras, else a note.
    """
    again = int(repeats(split.image_sha256).sum())
    if not again:
        return Findings()
    line = f"{name}: {again:,} images repeat another image of the split"
    for kind, values in (("identities", split.identities), ("cameras", split.cameras)):
        wrong = np.flatnonzero(contradictions(split.image_sha256, values))
        if wrong.size:
            return Findings(
                warnings=[
                    f"{line}; {wrong.size:,} occur under different {kind}: "
                    f"{some(split.filenames[wrong])}; remove the wrong ones"
                ]
            )
    return Findings(notes=[f"{line}, always under the same identity and camera"])


def check_people(
    train_identities: Int[np.ndarray, " images"] | Sequence[int],
    name: str,
    test: Catalog,
    names: Sequence[str] = (),
) -> Findings:
    """Find people of a test split who are also in the training split of the same data set.

    Args:
        train_identities: numbers of the people in the training images.
        name: of the data set and test split, for the messages.
        test: a query split or a gallery.
        names: names of the identities by their numbers; empty where the numbers are the names.
    """
    shared = np.intersect1d(train_identities, test.identities)
    if not shared.size:
        return Findings()
    shown = np.array([names[number] for number in shared]) if names else shared
    return Findings(
        warnings=[
            f"{name}: {shared.size:,} of {test.num_identities:,} identities are also in train: "
            f"{some(shown)}; if the {'names' if names else 'numbers'} mean the same people, the "
            "scores do not measure unseen people"
        ]
    )


def check_copied_queries(
    name: str,
    filenames: Shaped[np.ndarray, " queries"],
    copied: Bool[np.ndarray, " queries"],
    junk: Bool[np.ndarray, " queries"],
) -> Findings:
    """Judge the copies of queries in their gallery: a query must not find its own picture.

    Args:
        name: of the data set and protocol, for the messages.
        filenames: names of the queries.
        copied: which of them have a copy, from :func:`copied_queries`.
        junk: for which of them all copies are junk, likewise.

    Returns:
        A warning if a copy is ranked, else a note if there are copies.
    """
    if not copied.any():
        return Findings()
    line = (
        f"{name}: {copied.sum():,} queries are also in the gallery; for {junk.sum():,} of them all "
        "copies are junk (same identity and camera) and leave the ranking"
    )
    ranked = filenames[copied & ~junk]
    if not ranked.size:
        return Findings(notes=[f"{line}, as it should be"])
    return Findings(
        warnings=[
            f"{line}; for {ranked.size:,} a copy is ranked and distorts the scores: "
            f"{some(ranked)}; remove one of each pair"
        ]
    )


def copied_queries(
    query: Catalog, gallery: Catalog
) -> tuple[Bool[np.ndarray, " queries"], Bool[np.ndarray, " queries"]]:
    """Queries whose image is also in the gallery, by content.

    Returns:
        Whether there is a copy, and whether all copies are junk: they have the query's identity and
        camera, so they leave its ranking.
    """
    catalogs = query, gallery
    contents = _codes(np.concatenate([one.image_sha256 for one in catalogs]))
    people = [[one.identities, one.cameras] for one in catalogs]
    rows = np.stack([contents, *np.concatenate(people, axis=1)], axis=1)
    alike, junk = (_occurrences(codes, len(query)) for codes in (contents, _codes(rows)))
    return alike > 0, (alike > 0) & (junk == alike)


def first_rows(
    digests: Shaped[np.ndarray, " images"], wanted: Shaped[np.ndarray, " wanted"]
) -> Int[np.ndarray, " wanted"]:
    """The first row of ``digests`` with each ``wanted`` digest; -1 if there is none.

    >>> first_rows(np.array(["b", "a", "b"]), np.array(["b", "c"]))
    array([ 0, -1])
    """
    known, rows = np.unique(digests, return_index=True)
    nearest = np.searchsorted(known, wanted).clip(max=len(known) - 1)
    return np.where(known[nearest] == wanted, rows[nearest], -1)


def repeats(digests: Shaped[np.ndarray, " images"]) -> Bool[np.ndarray, " images"]:
    """Which images have the content of an earlier image of the split.

    >>> repeats(np.array(["b", "a", "b"]))
    array([False, False,  True])
    """
    return first_rows(digests, digests) != np.arange(len(digests))


def contradictions(
    digests: Shaped[np.ndarray, " images"], values: Int[np.ndarray, " images"]
) -> Bool[np.ndarray, " images"]:
    """Which images have a content that occurs in the split under different values.

    >>> contradictions(np.array(["b", "a", "b"]), np.array([1, 1, 2]))
    array([ True, False,  True])
    """
    originals = first_rows(digests, digests)
    pairs = np.unique(np.stack([originals, values], axis=1), axis=0)
    return np.bincount(pairs[:, 0], minlength=len(digests))[originals] > 1


def _codes(values: Shaped[np.ndarray, "images ..."]) -> Int[np.ndarray, " images"]:
    """A number for each value or row; equal ones have equal numbers.

    >>> _codes(np.array(["b", "a", "b"]))
    array([1, 0, 1])
    """
    return np.unique(values, axis=0, return_inverse=True)[1].ravel()


def _occurrences(codes: Int[np.ndarray, " images"], count: int) -> Int[np.ndarray, " {count}"]:
    """How often each of the first ``count`` codes occurs among the others.

    >>> _occurrences(np.array([0, 1, 1, 2, 1]), 2)
    array([0, 2])
    """
    return np.bincount(codes[count:], minlength=codes.max() + 1)[codes[:count]]
