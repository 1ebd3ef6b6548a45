"""Images with identical content, within a split and in two of them (NumPy only)."""

from collections.abc import Sequence

import numpy as np

from input_pipeline.catalog import Catalog


def content_codes(digests: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Number the contents of several splits.

    Args:
        digests: for each split, (N,) digests.

    Returns:
        For each split, (N,) int64; equal numbers in any of them mean identical images.
    """
    if not digests:
        return []
    joined = np.concatenate([split.astype("S64") for split in digests])
    codes = np.unique(joined, return_inverse=True)[1]
    return np.split(codes, np.cumsum([len(split) for split in digests])[:-1])


def first_rows(codes: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The first row of ``codes`` (N,) with each of the contents ``wanted`` (M,); -1 for none."""
    known, rows = np.unique(codes, return_index=True)
    nearest = np.searchsorted(known, wanted).clip(max=len(known) - 1)
    return np.where(known[nearest] == wanted, rows[nearest], -1)


def repeats(codes: np.ndarray) -> np.ndarray:
    """(N,) bool: images whose content an earlier image of the split has, too."""
    return first_rows(codes, codes) != np.arange(len(codes))


def contradictions(codes: np.ndarray, identities: np.ndarray) -> np.ndarray:
    """(N,) bool: images whose content stands in the split under several identities."""
    pairs = np.unique(np.stack([codes, identities], axis=1), axis=0)
    return np.bincount(pairs[:, 0], minlength=codes.max(initial=0) + 1)[codes] > 1


def queries_in_gallery(
    query: Catalog, gallery: Catalog, query_codes: np.ndarray, gallery_codes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Queries whose image stands in the gallery, too.

    Args:
        query: Q images.
        gallery: G images.
        query_codes: (Q,) their contents.
        gallery_codes: (G,) their contents.

    Returns:
        (Q,) bool, whether there is a copy, and (Q,) bool, whether all copies are junk: have the
        query's identity and camera, so that they leave its ranking.
    """
    size = max(query_codes.max(initial=0), gallery_codes.max(initial=0)) + 1
    copies = np.bincount(gallery_codes, minlength=size)[query_codes]
    rows = [
        np.stack([codes, catalog.identities, catalog.cameras], axis=1)
        for codes, catalog in ((query_codes, query), (gallery_codes, gallery))
    ]
    groups = np.unique(np.concatenate(rows), axis=0, return_inverse=True)[1].ravel()
    of_query, of_gallery = groups[: len(query)], groups[len(query) :]
    junk = np.bincount(of_gallery, minlength=groups.max(initial=0) + 1)[of_query]
    return copies > 0, (copies > 0) & (junk == copies)
