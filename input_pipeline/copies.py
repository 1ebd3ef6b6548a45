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
        A warning if a content occurs under different identities, else a note.
    """
    again = int(repeats(split.image_sha256).sum())
    if not again:
        return Findings()
    line = f"{name}: {again:,} images repeat another image of the split"
    wrong = np.flatnonzero(contradictions(split.image_sha256, split.identities))
    if not wrong.size:
        return Findings(notes=[f"{line}, always under the same identity"])
    return Findings(
        warnings=[
            f"{line}; {wrong.size:,} occur under different identities: "
            f"{some(split.filenames[wrong])}; remove the wrong ones"
        ]
    )


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
    digests: Shaped[np.ndarray, " images"], identities: Int[np.ndarray, " images"]
) -> Bool[np.ndarray, " images"]:
    """Which images have a content that occurs in the split under different identities.

    >>> contradictions(np.array(["b", "a", "b"]), np.array([1, 1, 2]))
    array([ True, False,  True])
    """
    originals = first_rows(digests, digests)
    pairs = np.unique(np.stack([originals, identities], axis=1), axis=0)
    return np.bincount(pairs[:, 0], minlength=len(digests))[originals] > 1
