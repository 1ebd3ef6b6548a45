"""Ranking and re-ranking against the ways of other code bases, in time and memory.

    python -m benchmarks.retrieval
    python -m benchmarks.retrieval --msmt17

Other code bases' ways are written out here with NumPy and SciPy. Every side gets the same
embeddings or distances, and runs in a process of its own, one after the other. Memory is the peak
of the process beyond what it held before the call. The second command measures this code alone at
MSMT17's size, which takes most of an hour on two cores.
"""

import argparse
import atexit
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from pgfl_jax.command_line import guarded
from pgfl_jax.errors import UserError
from pgfl_jax.retrieval import Ranking, evaluate_retrieval, k_reciprocal_distances, rank
from pgfl_jax.retrieval.metrics import Labels, evaluate_blocks
from pgfl_jax.retrieval.ranking import cosine_blocks
from pgfl_jax.retrieval.reranking import k_reciprocal_blocks
from pgfl_jax.retrieval.search.gallery import Origin, gallery_table, read_gallery, write_gallery
from pgfl_jax.retrieval.search.pictures import Picture

MARKET = 3_368, 15_913
MSMT17 = 11_659, 82_161
MILLION = 1_000_000
SMALL = 1_398, 6_602  # Market-1501's proportions
ENOUGH = 2.0  # seconds of repetitions


def embeddings(queries: int, gallery: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit-length rows of people who are seen about sixteen times each."""
    rng = np.random.default_rng(0)
    count = queries + gallery
    people = rng.standard_normal((max(1, count // 16), channels), np.float32)
    rows = rng.standard_normal((count, channels), np.float32)
    for row in rows:
        row += people[rng.integers(len(people))]
        row /= np.linalg.norm(row)
    return rows[:queries].copy(), rows[queries:].copy()


def labels(queries: int, gallery: int, people: int = 751) -> tuple[np.ndarray, ...]:
    """Identities and cameras of queries and gallery."""
    rng = np.random.default_rng(1)
    return tuple(rng.integers(n, size=size) for n in (people, 6) for size in (queries, gallery))


def sorted_scores(distances: np.ndarray, *known: np.ndarray) -> tuple[float, float]:
    """MAP and Rank-1 as the Cython evaluators find them: sort every row, then walk along it."""
    query_ids, gallery_ids, query_cameras, gallery_cameras = known
    order = np.argsort(distances, axis=1)
    precision, first = [], []
    for row, identity, camera in zip(order, query_ids, query_cameras, strict=True):
        same = gallery_ids[row] == identity
        at = np.flatnonzero(same)
        junk = gallery_cameras[row[at]] == camera
        rank = (at + 1 - np.cumsum(junk))[~junk]
        if rank.size:
            precision.append(np.mean(np.arange(1, rank.size + 1) / rank))
            first.append(rank[0] == 1)
    return float(np.mean(precision)), float(np.mean(first))


def _relative(query: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """(N, N) squared Euclidean distances of unit-length rows, over each row's largest."""
    rows = np.concatenate([query, gallery])
    d = 2 - 2 * rows @ rows.T
    return d / d.max(axis=1, keepdims=True)


def _reciprocal(order: np.ndarray, i: int, k: int) -> np.ndarray:
    forward = order[i, : k + 1]
    return forward[np.where(order[forward, : k + 1] == i)[0]]


def classic(query: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """The loops of Zhong et al., which torchreid and reid-strong-baseline copy."""
    d = _relative(query, gallery)
    order = np.argsort(d, axis=1)
    encodings = np.zeros_like(d)
    for i in range(len(d)):
        found = members = _reciprocal(order, i, 20)
        for candidate in found:
            half = _reciprocal(order, candidate, 10)
            if len(np.intersect1d(half, found)) > 2 / 3 * len(half):
                members = np.append(members, half)
        members = np.unique(members)
        weights = np.exp(-d[i, members])
        encodings[i, members] = weights / weights.sum()
    expanded = np.zeros_like(encodings)
    for i in range(len(d)):
        expanded[i] = encodings[order[i, :6]].mean(axis=0)
    having = [np.where(expanded[:, i] != 0)[0] for i in range(len(d))]
    jaccard = np.empty((len(query), len(d)), d.dtype)
    for i in range(len(query)):
        shared = np.zeros(len(d), d.dtype)
        for j in np.where(expanded[i] != 0)[0]:
            shared[having[j]] += np.minimum(expanded[i, j], expanded[having[j], j])
        jaccard[i] = 1 - shared / (2 - shared)
    return (0.7 * jaccard + 0.3 * d[: len(query)])[:, len(query) :]


def dense(query: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """The same without loops over neighbours, by products of whole matrices, as on GPUs."""
    d = _relative(query, gallery)
    order = np.argpartition(d, 20, axis=1)[:, :21]
    order = np.take_along_axis(
        order, np.argsort(np.take_along_axis(d, order, axis=1), axis=1), axis=1
    )

    def reciprocal(k: int) -> np.ndarray:
        near = np.zeros(d.shape, bool)
        np.put_along_axis(near, order[:, : k + 1], True, axis=1)
        return (near & near.T).astype(np.float32)

    full, half = reciprocal(20), reciprocal(10)
    joined = (full > 0) & (3 * (full @ half) > 2 * half.sum(axis=1))
    members = (full > 0) | (joined.astype(np.float32) @ half > 0)
    encodings = np.exp(-d) * members
    encodings /= encodings.sum(axis=1, keepdims=True)
    encodings = sum(encodings[order[:, k]] for k in range(6)) / 6
    of_gallery = np.ascontiguousarray(encodings[len(query) :].T)
    result = 0.3 * d[: len(query), len(query) :]
    for row, encoding in zip(result, encodings[: len(query)], strict=True):
        entries = np.flatnonzero(encoding)
        shared = np.minimum(of_gallery[entries], encoding[entries, None]).sum(axis=0)
        row += 0.7 * (1 - shared / (2 - shared))
    return result


def sparse_encodings(query: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Neighbours looked up once for all loops, as in SpCL, and encodings of scipy.sparse."""
    d = _relative(query, gallery)
    order = np.argsort(d, axis=1)[:, :21]
    full = [_reciprocal(order, i, 20) for i in range(len(d))]
    half = [_reciprocal(order, i, 10) for i in range(len(d))]
    encodings = sparse.lil_matrix(d.shape, dtype=d.dtype)
    for i, found in enumerate(full):
        members = found
        for candidate in found:
            common = np.intersect1d(half[candidate], found, assume_unique=True)
            if len(common) > 2 / 3 * len(half[candidate]):
                members = np.append(members, half[candidate])
        members = np.unique(members)
        weights = np.exp(-d[i, members])
        encodings.rows[i], encodings.data[i] = members.tolist(), (weights / weights.sum()).tolist()
    encodings = encodings.tocsr()
    near = np.repeat(np.arange(len(d)), 6), order[:, :6].ravel()
    share = sparse.csr_matrix((np.full(near[0].size, 1 / 6, d.dtype), near), d.shape)
    encodings = share @ encodings
    having = encodings.tocsc()
    result = 0.3 * d[: len(query), len(query) :]
    for i, row in enumerate(result):
        shared = np.zeros(len(d), d.dtype)
        for at in range(encodings.indptr[i], encodings.indptr[i + 1]):
            j = encodings.indices[at]
            others = slice(having.indptr[j], having.indptr[j + 1])
            least = np.minimum(having.data[others], encodings.data[at])
            shared[having.indices[others]] += least
        shared = shared[len(query) :]
        row += 0.7 * (1 - shared / (2 - shared))
    return result


def _distances() -> tuple[np.ndarray, ...]:
    return np.random.default_rng(0).random(MARKET, np.float32), *labels(*MARKET)


def _score_large(query: np.ndarray, gallery: np.ndarray) -> None:
    evaluate_blocks(cosine_blocks(query, gallery), Labels(*labels(*MSMT17, 3060)))


def _rerank_large(query: np.ndarray, gallery: np.ndarray) -> None:
    evaluate_blocks(k_reciprocal_blocks(query, gallery), Labels(*labels(*MSMT17, 3060)))


def random_rows(count: int, seed: int = 0) -> np.ndarray:
    """Unit-length rows of 512 numbers, in all directions alike."""
    rows = np.random.default_rng(seed).standard_normal((count, 512), np.float32)
    for block in np.array_split(rows, max(1, count // 2**14)):
        block /= np.linalg.norm(block, axis=1, keepdims=True)
    return rows


def _million() -> tuple[np.ndarray, ...]:
    return random_rows(100, seed=1), random_rows(MILLION)


def _stored_million() -> tuple[Any, ...]:
    """The same queries, and a file with the same gallery, which goes with the process."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    path = folder / "million.parquet"
    rows = random_rows(MILLION)
    pictures = [Picture(path.with_name(f"{at}.jpg")) for at in range(MILLION)]
    step = 2**14
    tables = (
        gallery_table(pictures[at : at + step], rows[at : at + step], path.parent)
        for at in range(0, MILLION, step)
    )
    write_gallery(path, Origin("run", 0, "trained", "a", 512), tables)
    return random_rows(100, seed=1), path


def _search_million(query: np.ndarray, gallery: np.ndarray) -> Ranking:
    return rank(query, gallery, top=10)


def _search_stored(query: np.ndarray, path: Path) -> Ranking:
    return rank(query, read_gallery(path).embeddings(), top=10)


Side = tuple[Callable[[], tuple[np.ndarray, ...]], Callable[..., Any]]
_SMALL: Callable[[], tuple[np.ndarray, ...]] = lambda: embeddings(*SMALL, 512)  # noqa: E731
_LARGE: Callable[[], tuple[np.ndarray, ...]] = lambda: embeddings(*MSMT17, 2048)  # noqa: E731
TASKS: dict[str, dict[str, Side]] = {
    "scores from 3,368 × 15,913 distances": {
        "pgfl_jax": (_distances, evaluate_retrieval),
        "sorted, as Cython evaluators": (_distances, sorted_scores),
    },
    "re-ranking 8,000 × 512": {
        "pgfl_jax": (_SMALL, k_reciprocal_distances),
        "Zhong et al., torchreid": (_SMALL, classic),
        "dense matrices": (_SMALL, dense),
        "SpCL's lists and scipy.sparse": (_SMALL, sparse_encodings),
    },
    "top 10 of 100 × 1,000,000 × 512": {"pgfl_jax": (_million, _search_million)},
    "the same, gallery read from its file": {"pgfl_jax": (_stored_million, _search_stored)},
}
LARGE_TASKS: dict[str, dict[str, Side]] = {
    "top 50 of 11,659 × 82,161 × 2,048": {"pgfl_jax": (_LARGE, rank)},
    "scores of 11,659 × 82,161 × 2,048": {"pgfl_jax": (_LARGE, _score_large)},
    "re-ranking 93,820 × 2,048, with scores": {"pgfl_jax": (_LARGE, _rerank_large)},
}


def measure(task: str, side: str) -> dict[str, float]:
    """Seconds and peak memory of one side, in this process.

    The peak is that of the first call, the seconds are the least of those that fit
    :data:`ENOUGH`.
    """
    prepare, run = (TASKS | LARGE_TASKS)[task][side]
    inputs = prepare()
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = _status("VmRSS")
    found: list[float] = []
    peak = 0
    while not found or sum(found) + found[-1] < ENOUGH:
        began = time.perf_counter()
        run(*inputs)
        found.append(time.perf_counter() - began)
        peak = peak or _status("VmHWM")
    return {"seconds": min(found), "peak_bytes": peak - before}


def _status(name: str) -> int:
    """A size of this process in bytes, as Linux says it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def compare(task: str, sides: Sequence[str]) -> list[str]:
    """Rows of a table: each side in a fresh process, and how many times as long it takes."""
    rows, ours = [], 0.0
    for side in sides:
        command = [sys.executable, "-m", "benchmarks.retrieval", "--worker", task, side]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise UserError(f"{side}, {task}: ended with status {done.returncode}")
        found = json.loads(done.stdout)
        ours = ours or found["seconds"]
        rows.append(
            f"| {task if side == sides[0] else ''} | {side} | {found['seconds']:,.2f} | "
            f"{found['seconds'] / ours:.1f} | {found['peak_bytes'] / 2**20:,.0f} |"
        )
        print(rows[-1], flush=True)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Ranking and re-ranking: time and memory.")
    parser.add_argument("--msmt17", action="store_true", help="this code alone, at that size")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.worker:
        print(json.dumps(measure(*arguments.worker)))
        return 0
    print("| | side | seconds | times as long | peak, MiB |\n|---|---|---:|---:|---:|")
    for task, sides in (LARGE_TASKS if arguments.msmt17 else TASKS).items():
        compare(task, [*sides])
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
