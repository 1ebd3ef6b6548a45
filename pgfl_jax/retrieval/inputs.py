"""Distances and labels as arrays; what cannot be ranked is refused."""

import numpy as np
import numpy.typing as npt
from jaxtyping import Shaped


def as_distances(values: npt.ArrayLike) -> Shaped[np.ndarray, "..."]:
    """Distances as an array of real numbers.

    Raises:
        ValueError: they are complex, text or objects, or some of them are masked.

    >>> as_distances([[1, 2]]).shape
    (1, 2)
    """
    table = _unmasked("distances", values)
    if not np.can_cast(table.dtype, np.float64, "same_kind"):  # True for bfloat16, too
        raise ValueError(f"distances are {table.dtype}; expected an array of real numbers")
    return table


def as_labels(name: str, values: npt.ArrayLike) -> Shaped[np.ndarray, "..."]:
    """Labels as an array that can be sorted.

    Args:
        name: for the messages.
        values: identities or cameras.

    Raises:
        ValueError: some are masked or missing, or they are not all of one kind.

    >>> as_labels("query_ids", ["b", "a"]).tolist()
    ['b', 'a']
    """
    labels = _unmasked(name, values)
    if labels.dtype.kind != "O":
        return labels
    try:  # NaN is the one value that differs from itself
        lacking = any(label is None or label != label for label in labels.ravel().tolist())
        if not lacking:
            np.sort(labels, axis=None)
    except TypeError as error:
        raise ValueError(f"{name} are of different kinds ({error}); give labels of one") from error
    if lacking:
        raise ValueError(f"{name} hold None or NaN; leave out what has no label")
    return labels


def _unmasked(name: str, values: npt.ArrayLike) -> Shaped[np.ndarray, "..."]:
    """An array without a mask."""
    if np.ma.is_masked(values):  # NumPy would use what the mask hides
        raise ValueError(f"{name} hold masked values; leave out those rows or columns")
    return np.asarray(values)
