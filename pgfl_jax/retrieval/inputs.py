"""Embeddings, distances and labels as arrays; what cannot be ranked is refused."""

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Shaped


def as_reals(name: str, values: npt.ArrayLike) -> Shaped[np.ndarray, "..."]:
    """An array of real numbers.

    Args:
        name: for the messages.
        values: distances or embeddings.

    Raises:
        ValueError: they are complex, text or objects, or some of them are masked.

    >>> as_reals("distances", [[1, 2]]).shape
    (1, 2)
    """
    table = _unmasked(name, values)
    if not np.can_cast(table.dtype, np.float64, "same_kind"):  # True for bfloat16, too
        raise ValueError(f"{name} are {table.dtype}; expected an array of real numbers")
    return table


def as_rows(
    query: npt.ArrayLike, gallery: npt.ArrayLike
) -> tuple[Float[np.ndarray, "queries channels"], Float[np.ndarray, "gallery channels"]]:
    """Embeddings of one type, float32 at least, and one length.

    Raises:
        ValueError: they are not tables of equally long rows of real numbers.

    >>> [rows.dtype.name for rows in as_rows([[1, 2]], np.zeros((0, 2), np.float16))]
    ['float64', 'float64']
    """
    names = "query", "gallery"
    sides = [as_reals(name, rows) for name, rows in zip(names, (query, gallery), strict=True)]
    dtype = np.result_type(*sides, np.float32)
    for name, rows in zip(names, sides, strict=True):
        if rows.ndim != 2:
            raise ValueError(f"{name} has shape {rows.shape}; expected (rows, channels)")
    first, second = (rows.astype(dtype, copy=False) for rows in sides)
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"query and gallery have rows of {first.shape[1]} and {second.shape[1]} numbers"
        )
    return first, second


def check_digits(name: str, squares: Float[np.ndarray, " rows"]) -> None:
    """Raises ValueError for a row whose squared length, not 0, is so small that it lacks digits.

    >>> check_digits("query", np.float32([0.0, 1.0, 1e-36]))
    Traceback (most recent call last):
    ...
    ValueError: row 2 of query has a length of 1e-18, too little for float32; scale the rows up
    """
    kind = np.finfo(squares.dtype)
    if (short := np.flatnonzero((squares > 0) & (squares < kind.tiny / kind.eps))).size:
        raise ValueError(
            f"row {short[0]} of {name} has a length of {float(squares[short[0]]) ** 0.5:.3g}, too "
            f"little for {squares.dtype}; scale the rows up"
        )


def as_labels(name: str, values: npt.ArrayLike) -> Shaped[np.ndarray, "..."]:
    """Labels as an array that can be sorted.

    Args:
        name: for the messages.
        values: identities or cameras.

    Raises:
        ValueError: some are masked or missing, they are not all of one kind, or they are floats so
            large that two whole numbers are one.

    >>> as_labels("query_ids", ["b", "a"]).tolist()
    ['b', 'a']
    """
    labels = _unmasked(name, values)
    if np.issubdtype(labels.dtype, np.floating):
        largest, bound = np.abs(labels).max(initial=0), 2 / np.finfo(labels.dtype).eps
        if largest >= bound:
            raise ValueError(
                f"{name} are {labels.dtype} up to {largest:.0f}, but from {bound:.0f} on this type "
                "holds two neighbouring numbers as one; give integers or strings"
            )
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
