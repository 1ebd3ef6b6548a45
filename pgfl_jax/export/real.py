"""Real pictures through the whole chain: decode, resize, embed, and rank."""

import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8

from pgfl_jax import preprocessing
from pgfl_jax.embedder import Embedder
from pgfl_jax.export.contract import CONTRACTS, embed_function, named_variables
from pgfl_jax.export.running import new_array
from pgfl_jax.preprocessing import UNREADABLE, PictureError, list_pictures
from pgfl_jax.retrieval.protocols import EvaluationData
from pgfl_jax.retrieval.ranking import rank_protocol

SAMPLE = 64
"""How many pictures are compared one by one."""

_BATCH = 32


@dataclasses.dataclass(frozen=True, eq=False)
class RealPictures:
    """Pictures of the network's size, with JAX's embeddings of them.

    Attributes:
        sample: up to ``SAMPLE`` of them, uint8 RGB.
        sample_rows: their embeddings.
        source: where the sample is from, for the record.
        data: the test set; None: only the sample.
        splits: every picture of each of its splits, by name; on disk.
        rows: their embeddings.
        calibration: training pictures, on which int8 models are calibrated; None: there are none.
    """

    sample: UInt8[np.ndarray, "sample height width 3"]
    sample_rows: Float[np.ndarray, "sample channels"]
    source: str
    data: EvaluationData | None = None
    splits: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    rows: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    calibration: UInt8[np.ndarray, "calibration height width 3"] | None = None


def reference(
    embedder: Embedder, pictures: UInt8[np.ndarray, "n height width 3"]
) -> Float[np.ndarray, "n channels"]:
    """JAX's embeddings of pictures of the network's size, on the CPU and in float32."""
    embed = jax.jit(embed_function(embedder, CONTRACTS["uint8_nhwc"]))
    cpu = jax.devices("cpu")[0]
    variables = jax.device_put(named_variables(embedder), cpu)
    rows = np.empty((len(pictures), embedder.dim), np.float32)
    # All batches have one size, so that one program is compiled.
    size = min(_BATCH, len(pictures))
    with jax.default_matmul_precision("highest"):
        for end in [*range(size, len(pictures), size), len(pictures)]:
            batch = jax.device_put(np.asarray(pictures[end - size : end]), cpu)
            rows[end - size : end] = embed(variables, batch)
    return rows


def from_folder(embedder: Embedder, folder: Path) -> RealPictures:
    """Pictures of a folder, evenly chosen.

    Raises:
        PictureError: the folder has none, or one cannot be read.
    """
    paths, _ = list_pictures(folder)
    sample = np.stack([embedder.preprocess(paths[i]) for i in _evenly(len(paths))])
    return RealPictures(sample, reference(embedder, sample), "given pictures")


def from_data(
    embedder: Embedder,
    data: EvaluationData,
    scratch: Path,
    training: Mapping[str, bytes] | None = None,
) -> RealPictures:
    """The test set of a run; the sample is evenly chosen from its first protocol.

    Args:
        embedder: of the run.
        data: the splits, with their encoded files.
        scratch: a folder for the decoded pictures.
        training: files of training pictures by name, for calibration.

    Raises:
        PictureError: a file cannot be read; names it.
    """
    size = embedder.config.data.height, embedder.config.data.width
    splits = {}
    for number, (name, split) in enumerate(data.splits.items()):
        pictures = new_array(scratch / f"{number}.npy", (len(split), *size, 3), "uint8")
        for index in range(len(split)):
            pictures[index] = _decoded(split.encoded[index], str(split.filenames[index]), *size)
        splits[name] = pictures
    rows = {name: reference(embedder, pictures) for name, pictures in splits.items()}
    protocol = data.protocols[0]
    names = protocol.query, protocol.gallery
    places = [(name, index) for name in names for index in range(len(splits[name]))]
    chosen = [places[i] for i in _evenly(len(places))]
    calibration = [_decoded(file, name, *size) for name, file in (training or {}).items()]
    return RealPictures(
        np.stack([splits[name][index] for name, index in chosen]),
        np.stack([rows[name][index] for name, index in chosen]),
        f"{protocol.dataset} {protocol.name}",
        data,
        splits,
        rows,
        np.stack(calibration) if calibration else None,
    )


def _evenly(count: int) -> Sequence[int]:
    return np.linspace(0, count - 1, min(count, SAMPLE)).round().astype(int).tolist()


def _decoded(encoded: bytes, name: str, height: int, width: int) -> np.ndarray:
    try:
        pixels = preprocessing.read_pixels(io.BytesIO(encoded))
    except UNREADABLE as error:
        raise PictureError(f"{name}: damaged, or not a picture") from error
    return preprocessing.resize(pixels, height, width)


def scores(
    data: EvaluationData, rows: Mapping[str, np.ndarray], max_rank: int
) -> list[dict[str, Any]]:
    """Score each protocol: mAP and Rank-1, fractions in [0, 1].

    Args:
        data: the splits and protocols.
        rows: (N, D) embeddings of each split.
        max_rank: length of the CMC.
    """
    results = []
    for protocol in data.protocols:
        metrics = rank_protocol(rows, protocol, data.splits, max_rank=max_rank).metrics
        results.append(
            {
                "dataset": protocol.dataset,
                "protocol": protocol.name,
                "queries": metrics.num_valid_queries,
                "mAP": metrics.mean_ap,
                "rank1": float(metrics.cmc[0]),
            }
        )
    return results
