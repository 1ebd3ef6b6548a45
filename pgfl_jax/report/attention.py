"""Where the energy of the main branch falls: on the person or beside, and each group on its part.

The energy of a group of channels at a cell is the sum of their squares. A main branch that predicts
maps pools each group with one of them, so a cell counts by its map: the energy is weighted with it.
Everything here is float64 NumPy; :mod:`pgfl_jax.report.feature_maps` runs the network.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float

from pgfl_jax.retrieval.results import occlusion_bins


@dataclasses.dataclass(frozen=True, eq=False)
class Shares:
    """Shares of energy of N images; NaN where an image has no pose, or a part is not visible.

    Attributes:
        foreground: (N,) share of all energy that falls on the foreground map, in [0, 1].
        parts: (N, G) share of a group's energy that falls on its part map, in [0, 1].
        even_foreground: (N,) the share that energy spread evenly over the cells would have.
        even_parts: (N, G) likewise.
    """

    foreground: Float[np.ndarray, " images"]
    parts: Float[np.ndarray, "images parts"]
    even_foreground: Float[np.ndarray, " images"]
    even_parts: Float[np.ndarray, "images parts"]


def pooled_energy(
    energy: Float[np.ndarray, "images height width parts"],
    predicted: Float[np.ndarray, "images height width maps"] | None,
) -> Float[np.ndarray, "images height width parts"]:
    """The energy of each group, weighted with the map that it is pooled with.

    Args:
        energy: Σ_c F_c² over the channels c of each group.
        predicted: the predicted maps in [0, 1], one per group or one for all of them; None: the
            branch predicts no maps.

    >>> pooled_energy(np.array([[[[1.0, 4.0]]]]), np.array([[[[0.5]]]])).tolist()
    [[[[0.5, 2.0]]]]
    """
    energy = energy.astype(np.float64)
    return energy if predicted is None else energy * predicted.astype(np.float64)


def relative(energy: Float[np.ndarray, "height width *parts"]) -> Float[np.ndarray, "..."]:
    """Energies of an image over the largest, of each group by itself: to draw where they are.

    >>> relative(np.array([[1.0, 4.0]])).tolist()
    [[0.25, 1.0]]
    """
    return energy / np.maximum(energy.max(axis=(0, 1)), 1e-12)


def share_on(
    energy: Float[np.ndarray, "images height width *parts"],
    maps: Float[np.ndarray, "images height width *parts"],
) -> Float[np.ndarray, "images ..."]:
    """Σ map · energy / Σ energy over the cells; NaN without energy.

    >>> share_on(np.array([[[1.0, 4.0]]]), np.array([[[0.0, 1.0]]])).tolist()
    [0.8]
    """
    energy, maps = energy.astype(np.float64), maps.astype(np.float64)
    total = energy.sum(axis=(1, 2))
    inside = (energy * maps).sum(axis=(1, 2))
    return np.divide(inside, total, out=np.full_like(total, np.nan), where=total > 0)


def energy_shares(
    energy: Float[np.ndarray, "images height width parts"],
    part_maps: Float[np.ndarray, "images height width parts"],
    visibility: Float[np.ndarray, "images parts"],
) -> Shares:
    """How much of the energy falls on the person, and of each group on its part.

    The foreground map is the maximum of the part maps, as in loss 3 (docs/method.md).

    Args:
        energy: of each group, from :func:`pooled_energy`.
        part_maps: of the pose, in [0, 1].
        visibility: of the parts, in [0, 1]; 0: not visible, and so without a share.
    """
    foreground, seen = part_maps.max(axis=-1), visibility > 0
    even = np.ones_like(energy)
    return Shares(
        foreground=_where(seen.any(axis=1), share_on(energy.sum(axis=-1), foreground)),
        parts=_where(seen, share_on(energy, part_maps)),
        even_foreground=_where(seen.any(axis=1), share_on(even[..., 0], foreground)),
        even_parts=_where(seen, share_on(even, part_maps)),
    )


@dataclasses.dataclass(frozen=True)
class BinShares:
    """Mean shares of the queries in a bin of occlusion; NaN where none of them has any.

    Attributes:
        low: lower end, in [0, 1].
        high: upper end.
        queries: how many of them have a pose.
        foreground: mean share on the foreground.
        even_foreground: that of evenly spread energy.
        parts: mean, over the visible parts of all queries, of the share on the part.
        even_parts: that of evenly spread energy.
    """

    low: float
    high: float
    queries: int
    foreground: float
    even_foreground: float
    parts: float
    even_parts: float


def by_occlusion(
    shares: Shares, occlusion: Float[np.ndarray, " images"], edges: Sequence[float | int]
) -> Iterator[BinShares]:
    """The mean shares in each bin of occlusion, without empty bins.

    Args:
        shares: of N queries.
        occlusion: (N,) hidden share of each query's person in [0, 1]; NaN where unknown.
        edges: of the bins, rising; the last bin is closed.
    """
    for low, high, inside in occlusion_bins(occlusion, edges):
        inside &= ~np.isnan(shares.foreground)
        if inside.any():
            yield BinShares(low, high, int(inside.sum()), *_means(shares, inside))


def overall(shares: Shares) -> BinShares:
    """The mean shares of all images."""
    inside = ~np.isnan(shares.foreground)
    return BinShares(0.0, 1.0, int(inside.sum()), *_means(shares, inside))


def mean_of(values: Float[np.ndarray, "..."]) -> float:
    """The mean of the values that are not NaN; NaN if there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def _means(shares: Shares, inside: Bool[np.ndarray, " images"]) -> tuple[float, ...]:
    columns = shares.foreground, shares.even_foreground, shares.parts, shares.even_parts
    return tuple(mean_of(values[inside]) for values in columns)


def _where(
    known: Bool[np.ndarray, "*shape"] | np.bool, values: Float[np.ndarray, "*shape"]
) -> Float[np.ndarray, "*shape"]:
    return np.where(known, values, np.nan)
