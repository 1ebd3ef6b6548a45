"""An index of a gallery by FAISS, for galleries of millions: faster than exact search, less sure.

``crops.index`` beside ``crops.parquet`` is a folder of the index itself and ``index.json``: what it
is of, how it is built, and which share of the exact nearest pictures it finds.
"""

import dataclasses
import hashlib
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np

from pgfl_jax.errors import UserError
from pgfl_jax.files import replacing_folder
from pgfl_jax.retrieval.blocks import Ranking
from pgfl_jax.retrieval.ranking import rank
from pgfl_jax.retrieval.search.gallery import Gallery, Rows

KINDS = ("exact", "hnsw", "ivf")
_EXACT, _HNSW = 50_000, 1_000_000  # pictures up to which a kind is the default
_TOP, _SAMPLE = 10, 200  # recall is of the ten nearest, over so many queries
_LINKS = 32  # of a picture in HNSW's graph


@dataclasses.dataclass(frozen=True)
class Description:
    """What ``index.json`` says.

    Attributes:
        kind: exact, hnsw or ivf.
        pictures: how many it holds, N.
        sha256: digest of their embeddings.
        effort: how much of it a search looks at: cells of ivf, candidates of hnsw.
        recall: share of the exact ten nearest that it finds, in [0, 1].
        queries: how many queries the recall was measured with.
        exact_ms: time of an exact search by one query, in milliseconds.
        index_ms: that of a search in the index.
    """

    kind: str
    pictures: int
    sha256: str
    effort: int
    recall: float
    queries: int
    exact_ms: float
    index_ms: float

    def __str__(self) -> str:
        """A line for the terminal."""
        return (
            f"{self.kind} index of {self.pictures:,} pictures: recall of the nearest {_TOP} "
            f"{self.recall:.4f} against exact search ({self.queries} queries), "
            f"{self.index_ms:.2f} ms a query instead of {self.exact_ms:.2f}"
        )


def index_folder(gallery: Path) -> Path:
    """Where the index of a gallery file is."""
    return gallery.with_suffix(".index")


def build_index(gallery: Gallery, *, kind: str | None = None, recall: float = 0.99) -> Description:
    """Build a gallery's index, or add to it the pictures that the gallery has gained.

    Args:
        gallery: what is indexed.
        kind: one of :data:`KINDS`; None: that of the index that is there, or exact up to 50,000
            pictures, hnsw up to a million, ivf beyond.
        recall: the effort of a search is doubled until it finds this share of the exact ten
            nearest, measured with pictures of the gallery as queries, each without itself.

    Raises:
        UserError: FAISS is not installed, or the gallery has too few pictures.
        OSError: the index cannot be written; what was there stays.
    """
    faiss = _faiss()
    if len(gallery) <= _TOP:
        raise UserError(f"{gallery.path}: {len(gallery)} pictures need no index")
    rows, folder = gallery.embeddings(), index_folder(gallery.path)
    index: Any = None
    held: Description | None = None
    if folder.exists():
        index, held = _open(folder)
    if held is None or not _continues(held, rows, kind):
        kind, effort = kind or _usual_kind(len(rows)), 1
        index = _new(faiss, kind, rows)
    else:
        kind, effort = held.kind, held.effort
    index.add(rows[index.ntotal :])
    measured = _tuned(index, rows, kind, effort, recall)
    description = Description(sha256=gallery.sha256, **measured)
    with replacing_folder(folder) as beside:
        with (beside / "index.faiss").open("wb") as file:
            # FAISS itself loses its last bytes on a full disk without an error.
            faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))
        text = json.dumps(dataclasses.asdict(description), indent=1)
        (beside / "index.json").write_text(text + "\n", encoding="utf-8")
    return description


def search_index(gallery: Gallery, queries: Rows, top: int) -> tuple[Ranking, Description]:
    """The pictures that the gallery's index finds, as :func:`pgfl_jax.retrieval.rank` gives them.

    Indices are −1 where the index finds fewer than ``top``.

    Raises:
        UserError: there is no index, or it is not of the gallery as it is now.
    """
    folder = index_folder(gallery.path)
    if not folder.exists():
        raise UserError(f"{folder}: no index; build it with pgfl index {gallery.path}")
    index, description = _open(folder)
    if description.sha256 != gallery.sha256:
        raise UserError(
            f"{folder}: {gallery.path} has changed since; bring it up to date with "
            f"pgfl index {gallery.path}"
        )
    top = min(top, len(gallery))
    found = _nearest(index, queries, top, description.kind, description.effort)
    return found, description


def _faiss() -> Any:
    try:
        import faiss
    except ModuleNotFoundError as error:
        raise UserError(
            "faiss is not installed; pip install faiss-cpu, or search without an index"
        ) from error
    return faiss


def _usual_kind(count: int) -> str:
    if count <= _EXACT:
        return "exact"
    return "hnsw" if count <= _HNSW else "ivf"


def _new(faiss: Any, kind: str, rows: Rows) -> Any:
    """An empty index for rows like these."""
    channels = rows.shape[1]
    if kind == "exact":
        return faiss.IndexFlatIP(channels)
    if kind == "hnsw":
        return faiss.IndexHNSWFlat(channels, _LINKS, faiss.METRIC_INNER_PRODUCT)
    # About √N cells; forty pictures train each of them, FAISS's least.
    cells = max(1, min(round(4 * math.sqrt(len(rows))), len(rows) // 40))
    quantiser = faiss.IndexFlatIP(channels)
    index = faiss.IndexIVFFlat(quantiser, channels, cells, faiss.METRIC_INNER_PRODUCT)
    chosen = np.random.default_rng(0).permutation(len(rows))[: 64 * cells]
    index.train(rows[np.sort(chosen)])
    return index


def _open(folder: Path) -> tuple[Any, Description]:
    faiss = _faiss()
    try:
        content = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        return faiss.read_index(str(folder / "index.faiss")), Description(**content)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{folder}: damaged; remove it, and run pgfl index again") from error


def _continues(held: Description, rows: Rows, kind: str | None) -> bool:
    """Whether an index of this kind holds the first of these rows."""
    if kind not in (None, held.kind) or held.pictures > len(rows):
        return False
    return hashlib.sha256(rows[: held.pictures].data).hexdigest() == held.sha256


def _tuned(index: Any, rows: Rows, kind: str, effort: int, wanted: float) -> dict[str, Any]:
    """The least effort, doubled from ``effort``, that finds enough; its recall and times."""
    sample = np.sort(np.random.default_rng(1).permutation(len(rows))[:_SAMPLE])
    started = time.perf_counter()
    exact = rank(rows[sample], rows, top=_TOP + 1)
    exact_ms = 1000 * (time.perf_counter() - started) / len(sample)
    most = {"exact": 1, "hnsw": len(rows), "ivf": getattr(index, "nlist", 1)}[kind]
    if kind == "hnsw":
        effort = max(effort, 16)
    while True:
        effort = min(effort, most)
        started = time.perf_counter()
        found = _nearest(index, rows[sample], _TOP + 1, kind, effort)
        index_ms = 1000 * (time.perf_counter() - started) / len(sample)
        recall = _recall(exact, found, sample)
        if recall >= wanted or effort == most:
            break
        effort *= 2
    return {
        "kind": kind,
        "pictures": len(rows),
        "effort": effort,
        "recall": recall,
        "queries": len(sample),
        "exact_ms": exact_ms,
        "index_ms": index_ms,
    }


def _recall(exact: Ranking, found: Ranking, queries: np.ndarray) -> float:
    """The mean share of the exact ten nearest that are found, without the queries themselves.

    What is as near as the tenth, to rounding, counts as one of them.
    """
    shares = []
    for own, items, bounds, others, distances in zip(queries, *exact, *found, strict=True):
        farthest = bounds[items != own][_TOP - 1]
        near = distances[(others != own) & (others >= 0)][:_TOP]
        shares.append((near <= farthest + 1e-6).sum() / _TOP)
    return float(np.mean(shares))


def _nearest(index: Any, queries: Rows, top: int, kind: str, effort: int) -> Ranking:
    """Indices, −1 where fewer are found, and cosine distances."""
    if kind == "hnsw":
        index.hnsw.efSearch = max(effort, top)
    elif kind == "ivf":
        index.nprobe = effort
    scores, found = index.search(np.ascontiguousarray(queries), top)
    return Ranking(found, 1 - scores)
