r"""Which distance means "the same person": error rates over thresholds, and a threshold for a rate.

A pair is accepted if its distance is at most the threshold t. With :math:`d` the distances of M
matches and N impostors (:mod:`pgfl_jax.retrieval.pairs`):

- true accept rate TAR(t) = #{matches: d ≤ t} / M, false reject rate FRR = 1 − TAR;
- false accept rate FAR(t) = #{impostors: d ≤ t} / N;
- TAR at FAR = f: that of the largest t with FAR(t) ≤ f. There is none if f N < 1: so few impostors
  say nothing about such a rate;
- equal error rate: where the line through the points (FAR, FRR) crosses FAR = FRR. The points are
  joined by straight lines and begin at (0, 1).

Intervals are 95 % percentile bootstraps over the identities of the queries: pairs of one person
are not independent, and so are resampled together. A resample's rates come from histograms, read
between the bins' edges by straight lines.

Reference: ISO/IEC 19795-1, "Biometric performance testing and reporting"; A. Martin et al., "The
DET Curve in Assessment of Detection Task Performance", Eurospeech 1997; R. Bolle et al., "Error
analysis of pattern recognition systems: the subsets bootstrap", CVIU 2004 (resampling by person).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Int

from pgfl_jax.errors import UserError
from pgfl_jax.retrieval.pairs import BINS, FINE, PairDistances, bin_edges, bin_numbers

LEVEL = 0.95
HISTOGRAM_BINS = 64
"""Bins of the histogram that is written, at most."""

MIN_MATCHES = 30
"""Matches that a pair of cameras needs to be reported."""


class Curve(NamedTuple):
    """How many pairs are accepted, by threshold.

    Attributes:
        thresholds: (T,) ascending.
        matches: (T,) matches accepted; the last number is all of them.
        impostors: (T,) impostors accepted; the last number is all of them.
    """

    thresholds: Float[np.ndarray, " thresholds"]
    matches: Int[np.ndarray, " thresholds"]
    impostors: Int[np.ndarray, " thresholds"]

    @property
    def far(self) -> Float[np.ndarray, " thresholds"]:
        """The false accept rate at each threshold."""
        return self.impostors / max(1, self.impostors[-1])

    @property
    def tar(self) -> Float[np.ndarray, " thresholds"]:
        """The true accept rate at each threshold."""
        return self.matches / max(1, self.matches[-1])


class Point(NamedTuple):
    """A threshold and the rates at it; the threshold is None where no pair may be accepted."""

    threshold: float | None
    tar: float
    far: float


def exact_curve(matches: npt.ArrayLike, impostors: npt.ArrayLike) -> Curve:
    """The curve with every distance as a threshold.

    Args:
        matches: (M,) distances, M ≥ 1.
        impostors: (N,) distances, N ≥ 1.

    Raises:
        ValueError: a distance is NaN or infinite, or there are no matches or no impostors.

    >>> curve = exact_curve([0.1, 0.3], [0.2, 0.3, 0.5])
    >>> curve.thresholds, curve.tar, curve.impostors
    (array([0.1, 0.2, 0.3, 0.5]), array([0.5, 0.5, 1. , 1. ]), array([0, 1, 2, 3]))
    """
    sides = [np.sort(np.asarray(side).ravel()) for side in (matches, impostors)]
    if not all(side.size and np.isfinite(side[[0, -1]]).all() for side in sides):  # NaN sorts last
        raise ValueError("a curve needs finite distances of matches and of impostors")
    thresholds = np.unique(np.concatenate(sides))
    return Curve(thresholds, *(np.searchsorted(side, thresholds, "right") for side in sides))


def binned_curve(
    edges: Float[np.ndarray, " bins"],
    matches: npt.ArrayLike,
    impostors: Int[np.ndarray, " bins"],
) -> Curve:
    """The curve with the upper ends of bins as thresholds.

    A distance on an edge is in the bin above it, and so it must exceed the threshold below.

    Args:
        edges: (B,) ascending; the last one is the largest distance that is possible.
        matches: (M,) distances.
        impostors: (B,) how many are in each bin.
    """
    accepted = np.searchsorted(np.sort(np.asarray(matches)), edges)
    accepted[-1] = np.size(matches)
    narrow = edges[:-1].astype(np.float32)  # as distances are
    below = np.where(narrow < edges[:-1], narrow, np.nextafter(narrow, np.float32(-np.inf)))
    return Curve(np.append(below, edges[-1]), accepted, np.cumsum(impostors))


def operating_point(curve: Curve, far: float) -> Point | None:
    """The largest threshold whose false accept rate is at most ``far``; None if f N < 1.

    >>> operating_point(exact_curve([0.1, 0.3], [0.2, 0.3, 0.5, 0.6]), 0.25)
    Point(threshold=0.2, tar=0.5, far=0.25)
    """
    allowed = math.floor(far * int(curve.impostors[-1]) * (1 + 1e-12))  # 0.3 is a little less
    if allowed < 1:
        return None
    at = int(np.searchsorted(curve.impostors, allowed, "right")) - 1
    if at < 0:
        return Point(None, 0.0, 0.0)
    return Point(float(curve.thresholds[at]), float(curve.tar[at]), float(curve.far[at]))


def equal_error(far: npt.ArrayLike, tar: npt.ArrayLike) -> Float[np.ndarray, "..."]:
    """The equal error rate of curves.

    Args:
        far: (…, T) false accept rates, ascending to 1.
        tar: (…, T) true accept rates at the same thresholds, ascending to 1.

    >>> float(equal_error([0.0, 0.5, 1.0], [0.5, 0.5, 1.0]))
    0.5
    """
    far, frr = np.asarray(far), 1 - np.asarray(tar)
    at = np.argmax(far >= frr, axis=-1, keepdims=True)  # the last point is (1, 0)
    before = np.maximum(at - 1, 0)
    first = at == 0
    low, high = np.take_along_axis(far, before, -1), np.take_along_axis(far, at, -1)
    low = np.where(first, 0, low)
    above = np.where(first, 1, np.take_along_axis(frr, before, -1)) - low
    below = high - np.take_along_axis(frr, at, -1)
    return (low + (high - low) * above / (above + below))[..., 0]


def calibrate(
    pairs: PairDistances, rates: Sequence[float], *, seed: int, resamples: int
) -> dict[str, Any]:
    """The content of ``results/<protocol>.calibration.json``, except for what was ranked.

    Args:
        pairs: the distances.
        rates: wanted false accept rates, in (0, 1).
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Returns:
        Rates in [0, 1] and distances; ``docs/evaluation.md`` names the fields. Without impostors
        there are no rates: ``eer`` is None, and the lists are empty.
    """
    num_impostors = int(pairs.by_group.sum())
    calibration: dict[str, Any] = {
        "accepted": "distance <= threshold",
        "pairs": {
            "matches": len(pairs.matches),
            "impostors": num_impostors,
            "junk": pairs.num_junk,
        },
        "bins": {"thresholds": len(pairs.pooled), "intervals": BINS, "limit": pairs.limit},
        "interval": {
            "over": "identities of the queries",
            "groups": len(pairs.by_group),
            "resamples": resamples,
            "level": LEVEL,
        },
        "eer": None,
        "operating_points": [],
        "histogram": _histogram(pairs),
        "camera_pairs": [],
    }
    if not (num_impostors and len(pairs.matches)):
        return calibration
    curve = _curve(pairs)
    points = {rate: operating_point(curve, rate) for rate in rates}
    samples = _resampled(pairs, seed=seed, resamples=resamples)
    eer = None if samples is None else _interval(equal_error(samples.far, samples.tar))
    return calibration | {
        "eer": {"rate": float(equal_error(curve.far, curve.tar)), "ci95": eer},
        "operating_points": [_describe(rate, point, samples) for rate, point in points.items()],
        "camera_pairs": [*_camera_pairs(pairs, points)],
    }


def suggested(calibration: Mapping[str, Any], far: float) -> Mapping[str, Any]:
    """The operating point of a calibration for a wanted false accept rate.

    Args:
        calibration: what :func:`calibrate` returned, or its file.
        far: one of the rates that it was made for.

    Raises:
        UserError: it has no threshold for this rate; says why.
    """
    points = {point["far"]: point for point in calibration["operating_points"]}
    if far not in points:
        known = ", ".join(f"{rate:g}" for rate in points) or "none"
        raise UserError(
            f"no threshold for a false accept rate of {far:g}; calibrated for {known} "
            "(config.eval.false_accept_rates)"
        )
    if points[far]["threshold"] is None:
        raise UserError(
            f"no threshold for a false accept rate of {far:g}: "
            f"{calibration['pairs']['impostors']:,} pairs of different people do not tell"
        )
    return points[far]


def _curve(pairs: PairDistances) -> Curve:
    if pairs.impostors is not None:
        return exact_curve(pairs.matches, pairs.impostors)
    edges = bin_edges(len(pairs.pooled), pairs.limit)[1:]
    return binned_curve(edges, pairs.matches, pairs.pooled)


class _Samples(NamedTuple):
    """The rates of R resamples at the edges of the bins that hold all pairs.

    Attributes:
        edges: (B,) of the bins, from the last one before the first pair.
        far: (R, B) ascending to 1.
        tar: (R, B) ascending to 1; NaN for a resample without matches.
    """

    edges: Float[np.ndarray, " bins"]
    far: Float[np.ndarray, "resamples bins"]
    tar: Float[np.ndarray, "resamples bins"]


def _resampled(pairs: PairDistances, *, seed: int, resamples: int) -> _Samples | None:
    """Resample the groups of identities; None if there is only one.

    The histogram of a resample is a sum of its groups' histograms: a product of how often each was
    drawn with all of them. In float32, since the counts are divided by their sum.
    """
    groups = len(pairs.by_group)
    if groups < 2:
        return None
    matches = np.zeros_like(pairs.by_group)
    place = bin_numbers(pairs.matches, pairs.limit) // FINE
    np.add.at(matches, (pairs.groups[pairs.match_rows], place), 1)
    filled = np.flatnonzero((pairs.by_group + matches).any(axis=0))
    bins = slice(max(0, filled[0] - 1), filled[-1] + 1)
    drawn = np.random.default_rng(seed).multinomial(
        groups, np.full(groups, 1 / groups), size=resamples
    )
    rates = []
    for table in (pairs.by_group, matches):
        sums = drawn.astype(np.float32) @ np.cumsum(table[:, bins], axis=1).astype(np.float32)
        with np.errstate(invalid="ignore"):
            rates.append(np.divide(sums, sums[:, -1:], out=sums))
    return _Samples(pairs.edges[bins], *rates)


def _describe(rate: float, point: Point | None, samples: _Samples | None) -> dict[str, Any]:
    """An operating point with its intervals."""
    point = point or Point(None, math.nan, math.nan)
    described = {
        "far": rate,
        "threshold": point.threshold,
        "threshold_ci95": None,
        "tar": _or_none(point.tar),
        "tar_ci95": None,
        "measured_far": _or_none(point.far),
        "measured_far_ci95": None,
    }
    if point.threshold is None or samples is None:
        return described
    at, share = _between(samples.far, rate)
    edges = samples.edges[None]
    here = _between(edges, min(point.threshold, np.nextafter(edges[0, -1], 0)))
    everywhere = np.broadcast_to(edges, samples.far.shape)
    return described | {
        "threshold_ci95": _interval(_mix(everywhere, at, share)),
        "tar_ci95": _interval(_mix(samples.tar, at, share)),
        "measured_far_ci95": _interval(_mix(samples.far, *here)),
    }


def _between(
    values: Float[np.ndarray, "rows bins"], wanted: float
) -> tuple[Int[np.ndarray, " rows"], Float[np.ndarray, " rows"]]:
    """Where rows exceed a value: the first such edge, and the share of the way to it.

    Args:
        values: ascending from 0, which is before the first edge; the last exceeds ``wanted``.
        wanted: the value.
    """
    at = np.argmax(values > wanted, axis=1)
    rows = np.arange(len(values))
    low = np.where(at > 0, values[rows, at - 1], 0)
    return at, (wanted - low) / (values[rows, at] - low)


def _mix(
    values: Float[np.ndarray, "resamples bins"],
    at: Int[np.ndarray, " rows"],
    share: Float[np.ndarray, " rows"],
) -> Float[np.ndarray, " resamples"]:
    """Values on the way to an edge, which is one for all rows, or one for each."""
    rows = np.arange(len(values))
    low = np.where(at > 0, values[rows, at - 1], 0)
    return low + share * (values[rows, at] - low)


def _interval(values: Float[np.ndarray, " resamples"]) -> list[float] | None:
    """The percentile interval; None if no resample has a value."""
    known = values[~np.isnan(values)]
    if not known.size:
        return None
    return np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()


def _histogram(pairs: PairDistances) -> dict[str, list]:
    """Counts of matches and impostors by distance; the bins reach from end to end of the data."""
    edges = bin_edges(BINS, pairs.limit)
    tables = np.histogram(np.clip(pairs.matches, 0, pairs.limit), edges)[0], pairs.by_group.sum(0)
    filled = np.flatnonzero(tables[0] + tables[1])
    start, end = (int(filled[0]), int(filled[-1]) + 1) if filled.size else (0, 0)
    width = max(1, math.ceil((end - start) / HISTOGRAM_BINS))
    starts = np.arange(start, end, width)
    ends = np.minimum(starts + width, BINS)
    counts = ([int(t[a:b].sum()) for a, b in zip(starts, ends, strict=True)] for t in tables)
    matches, impostors = counts
    return {
        "edges": edges[[*starts, *ends[-1:]]].tolist(),
        "matches": matches,
        "impostors": impostors,
    }


def _camera_pairs(
    pairs: PairDistances, common: Mapping[float, Point | None]
) -> Iterator[dict[str, Any]]:
    """The rates of the pairs of cameras with enough matches, from histograms."""
    for names, matches, impostors in _by_cameras(pairs):
        if len(matches) < MIN_MATCHES or not impostors.any():
            continue
        curve = binned_curve(pairs.edges, matches, impostors)
        points = []
        for rate, everywhere in common.items():
            own = operating_point(curve, rate)
            if own is None or everywhere is None or everywhere.threshold is None:
                continue
            shares = (
                float(np.interp(everywhere.threshold, curve.thresholds, values))
                for values in (curve.tar, curve.far)
            )
            at_common = dict(zip(("tar", "measured_far"), shares, strict=True))
            points.append(
                {
                    "far": rate,
                    "threshold": own.threshold,
                    "tar": own.tar,
                    "at_common_threshold": at_common,
                }
            )
        yield names | {
            "matches": len(matches),
            "impostors": int(impostors.sum()),
            "eer": float(equal_error(curve.far, curve.tar)),
            "operating_points": points,
        }


def _by_cameras(
    pairs: PairDistances,
) -> Iterator[tuple[dict[str, Any], Float[np.ndarray, " matches"], Int[np.ndarray, " bins"]]]:
    """The cameras, the matches' distances and the histogram of impostors of each pair."""
    for first, query_camera in enumerate(pairs.query_cameras.tolist()):
        for second, gallery_camera in enumerate(pairs.gallery_cameras.tolist()):
            chosen = (pairs.match_cameras == [[first], [second]]).all(axis=0)
            names = {"query_camera": query_camera, "gallery_camera": gallery_camera}
            yield names, pairs.matches[chosen], pairs.by_cameras[first, second]


def _or_none(rate: float) -> float | None:
    return None if math.isnan(rate) else rate
