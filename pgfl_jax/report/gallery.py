"""The data of the page's gallery: queries, their rankings in each run, pictures and maps."""

import base64
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from pgfl_jax.embedder import Embedder
from pgfl_jax.report.attention import Shares, energy_shares, relative
from pgfl_jax.report.feature_maps import FeatureMaps, feature_maps
from pgfl_jax.report.run_files import RunFiles
from pgfl_jax.report.thumbnails import Thumbnails
from pgfl_jax.retrieval.protocols import EvaluationData, EvaluationSplit, fingerprint
from pgfl_jax.retrieval.query_results import QueryResults

TOP = 10
"""Gallery items shown of each ranking."""


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """Where the pictures and maps of a run come from.

    Attributes:
        data: the run's test sets; None if they are not on this machine.
        embedder: its main branch; None if its checkpoint cannot be loaded.
    """

    data: EvaluationData | None = None
    embedder: Embedder | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """The runs that ranked the same queries in the same gallery.

    Attributes:
        protocol: its name.
        runs: their numbers.
        queries: their results, in the same order.
        chosen: rows of the queries that are shown, ascending.
    """

    protocol: str
    runs: Sequence[int]
    queries: Sequence[QueryResults]
    chosen: Int[np.ndarray, " shown"]

    @property
    def average_precision(self) -> Float[np.ndarray, "runs queries"]:
        """Of each run and query; NaN for a skipped query."""
        return np.stack([queries.average_precision for queries in self.queries])


def comparisons(runs: Sequence[RunFiles], limit: int) -> Iterator[Comparison]:
    """The protocols that have results of single queries.

    A run whose files or rules differ from the first one's is left out.

    Args:
        runs: the runs.
        limit: queries shown of each protocol, at most.
    """
    for protocol in dict.fromkeys(name for run in runs for name in run.shown):
        found = [
            (number, run.shown[protocol].queries)
            for number, run in enumerate(runs)
            if protocol in run.shown and run.shown[protocol].queries is not None
        ]
        same = [(number, q) for number, q in found if q and found[0][1] and _same(q, found[0][1])]
        if same:
            numbers, queries = zip(*same, strict=True)
            scores = np.stack([results.average_precision for results in queries])
            yield Comparison(protocol, numbers, queries, choose(scores, limit))


def _same(one: QueryResults, other: QueryResults) -> bool:
    return one.facts["fingerprint"]["sha256"] == other.facts["fingerprint"]["sha256"]


def choose(scores: Float[np.ndarray, "runs queries"], limit: int) -> Int[np.ndarray, " chosen"]:
    """Which queries to show: all, or those that differ most, or evenly from the worst to the best.

    Args:
        scores: average precisions; NaN for a skipped query, which comes last.
        limit: how many at most.

    >>> choose(np.array([[0.1, 0.9, 0.5, 0.3, 0.7]]), 3).tolist()
    [0, 1, 2]
    >>> choose(np.array([[0.1, 0.9, 0.5], [0.1, 0.2, 0.6]]), 2).tolist()
    [1, 2]
    """
    count = scores.shape[1]
    if count <= limit:
        return np.arange(count)
    if len(scores) > 1:
        return np.sort(np.argsort(-np.ptp(scores, axis=0), kind="stable")[:limit])
    order = np.argsort(scores[0], kind="stable")
    return np.sort(order[np.linspace(0, count - 1, limit).round().astype(int)])


def gallery_data(
    compared: Sequence[Comparison], runs: Sequence[RunFiles], sources: Sequence[Source]
) -> tuple[dict[str, Any], dict[tuple[str, int], Shares]]:
    """What the page's script reads, and the shares of energy by protocol and run.

    Args:
        compared: the protocols.
        runs: the runs.
        sources: of each run.
    """
    pictures, shares = Thumbnails(), {}
    protocols = []
    for comparison in compared:
        maps = dict(_all_maps(comparison, sources))
        for run, found in maps.items():
            if found.part_maps is not None and found.visibility is not None:
                shares[comparison.protocol, run] = energy_shares(
                    found.energy, found.part_maps, found.visibility
                )
        own = {run: shares.get((comparison.protocol, run)) for run in maps}
        protocols.append(_protocol(comparison, sources, pictures, maps, own))
    data = {
        "runs": [run.name for run in runs],
        "parts": next((list(s.data.parts) for s in sources if s.data is not None), []),
        "protocols": protocols,
        "pictures": [base64.b64encode(file).decode() for file in pictures.files],
    }
    return data, shares


def _all_maps(
    comparison: Comparison, sources: Sequence[Source]
) -> Iterator[tuple[int, FeatureMaps]]:
    """The feature maps of the shown queries, by the number of the run."""
    for run, queries in zip(comparison.runs, comparison.queries, strict=True):
        embedder, splits = sources[run].embedder, splits_of(sources[run].data, queries)
        if embedder is not None and splits is not None:
            yield run, feature_maps(embedder, splits[0], comparison.chosen)


def splits_of(
    data: EvaluationData | None, queries: QueryResults
) -> tuple[EvaluationSplit, EvaluationSplit] | None:
    """Query and gallery split of some results; None if these are not the files that were ranked."""
    if data is None:
        return None
    for protocol in data.protocols:
        if protocol.name == queries.facts["protocol"]:
            found = fingerprint(protocol, data.splits)["sha256"]
            if found == queries.facts["fingerprint"]["sha256"]:
                return data.splits[protocol.query], data.splits[protocol.gallery]
    return None


def _protocol(
    comparison: Comparison,
    sources: Sequence[Source],
    pictures: Thumbnails,
    maps: Mapping[int, FeatureMaps],
    shares: Mapping[int, Shares | None],
) -> dict[str, Any]:
    """A protocol's queries and gallery items."""
    first = comparison.queries[0]
    splits = next(
        (found for run in comparison.runs if (found := splits_of(sources[run].data, first))), None
    )
    gallery: dict[int, list[Any]] = {}
    for queries in comparison.queries:
        _add_items(gallery, queries, comparison.chosen)
    if splits:
        for row, item in gallery.items():
            item[3] = pictures.add(_digest(splits[1], row), splits[1].encoded[row])
    numbers = {row: number for number, row in enumerate(gallery)}
    shown = []
    for place, row in enumerate(comparison.chosen.tolist()):
        query = _query(first, row) | {
            "r": [_ranking(queries, row, numbers) for queries in comparison.queries],
            "a": [_attention(maps.get(run), shares.get(run), place) for run in comparison.runs],
        }
        if splits:
            query["p"] = pictures.add(_digest(splits[0], row), splits[0].encoded[row])
            limbs = splits[0].limbs(row) if splits[0].limbs else []
            query["l"] = [[limb.part, *_rounded((*limb.start, *limb.end))] for limb in limbs]
        shown.append(query)
    return {
        "name": comparison.protocol,
        "runs": list(comparison.runs),
        "total": len(first.query),
        "queries": shown,
        "gallery": list(gallery.values()),
    }


def _digest(split: EvaluationSplit, row: int) -> str:
    return str(split.image_sha256[row])


def _add_items(gallery: dict[int, list[Any]], queries: QueryResults, chosen: np.ndarray) -> None:
    """Add file, identity, camera and picture of the nearest gallery items, by gallery row."""
    columns = queries.nearest.indices, queries.filenames, queries.identities, queries.cameras
    shown = (column[chosen, :TOP].ravel().tolist() for column in columns)
    for row, name, identity, camera in zip(*shown, strict=True):
        gallery.setdefault(row, [str(name), identity, camera, None])


def _query(results: QueryResults, row: int) -> dict[str, Any]:
    """What is known about a query, whatever the run."""
    query = results.query
    occlusion = float(query.occlusion[row])
    return {
        "n": row,
        "f": str(query.filenames[row]),
        "i": int(query.identities[row]),
        "c": int(query.cameras[row]),
        "o": None if np.isnan(occlusion) else round(occlusion, 4),
        "m": int(results.num_matches[row]),
        "x": int(results.num_junk[row]),
        "p": None,
        "l": [],
    }


def _ranking(results: QueryResults, row: int, numbers: Mapping[int, int]) -> dict[str, Any]:
    """A run's ranking of a query: AP, rank of the first match, the nearest items."""
    average_precision, first = results.average_precision[row], results.first_match_rank[row]
    skipped = bool(np.isnan(average_precision))
    nearest = zip(
        results.nearest.indices[row, :TOP].tolist(),
        results.relations[row, :TOP],
        results.nearest.distances[row, :TOP].tolist(),
        strict=True,
    )
    return {
        "ap": None if skipped else round(float(average_precision), 4),
        "first": None if skipped else int(first),
        "top": [[numbers[item], relation[0], round(far, 4)] for item, relation, far in nearest],
    }


def _attention(maps: FeatureMaps | None, shares: Shares | None, row: int) -> dict[str, Any] | None:
    """The maps of a query in 8 bits, and its shares."""
    if maps is None:
        return None
    energy = maps.energy[row]
    whole = energy.sum(axis=-1)
    known = shares is not None and not np.isnan(shares.foreground[row])
    return {
        "grid": list(whole.shape),
        "e": _packed(relative(whole)),
        "g": _packed(relative(energy)),
        "q": None if maps.predicted is None else _packed(maps.predicted[row]),
        "t": None if maps.part_maps is None else _packed(maps.part_maps[row]),
        "s": round(float(shares.foreground[row]), 4) if shares and known else None,
        "gs": [None if np.isnan(s) else round(float(s), 4) for s in shares.parts[row]]
        if shares
        else [],
    }


def _packed(maps: Float[np.ndarray, "..."]) -> str:
    """Values in [0, 1] as bytes, map by map, in base64."""
    order = np.moveaxis(maps, -1, 0) if maps.ndim == 3 else maps
    return base64.b64encode((255 * order).round().astype(np.uint8).tobytes()).decode()


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(float(value), 3) for value in values]
