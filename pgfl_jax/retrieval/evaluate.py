"""Retrieval evaluation: embed the splits, rank the gallery for every query, write the scores."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from pgfl_jax.checkpoint import CheckpointError, open_checkpoints
from pgfl_jax.config import Config, Embedding, EvalConfig
from pgfl_jax.distributed.collectives import agreed_step, is_primary
from pgfl_jax.distributed.sharding import batch_sharding, make_mesh, replicated, shard_batch
from pgfl_jax.errors import UserError
from pgfl_jax.experiment import Experiment
from pgfl_jax.models import PGFL, main_branch, normalise
from pgfl_jax.report.manifest import read_run
from pgfl_jax.report.writers import embedding_label, score_table, write_json
from pgfl_jax.retrieval.metrics import RetrievalMetrics, bootstrap_interval, evaluate_retrieval
from pgfl_jax.train_state import TrainState

CMC_RANKS = (1, 3, 5, 10, 20)

Batch = Mapping[str, np.ndarray]
EmbedFn = Callable[[TrainState, Mapping[str, Array]], dict[str, Array]]


class EvaluationError(UserError):
    """An evaluation that has no meaning; the message names what is at fault."""


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluationSplit:
    """N images to embed, and what is known about each.

    Attributes:
        filenames: (N,) names.
        identities: (N,) identities.
        cameras: (N,) cameras.
        occlusion: (N,) hidden share of the person in [0, 1]; NaN where unknown.
        batches: starts an iteration over the images in their order, in batches of one static
            shape: ``images``, ``part_maps``, ``visibility``, and ``valid``, 0 for filling rows.
    """

    filenames: np.ndarray
    identities: np.ndarray
    cameras: np.ndarray
    occlusion: np.ndarray
    batches: Callable[[], Iterator[Batch]]


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Which split of which data set queries which; the names stand on every result."""

    name: str
    dataset: str
    query: str
    gallery: str


@dataclasses.dataclass(frozen=True)
class EvaluationData:
    """Splits by name, and the protocols over them; the first one decides the best step.

    Attributes:
        splits: by name.
        protocols: over these splits.
        dry_run: a few images of each protocol, to find out early what cannot work.
    """

    splits: dict[str, EvaluationSplit]
    protocols: list[Protocol]
    dry_run: "EvaluationData | None" = None

    @property
    def selection_protocol(self) -> str:
        """What chooses the best step, for the manifest."""
        return f"{self.protocols[0].query} in {self.protocols[0].gallery}"

    def facts(self) -> dict[str, Any]:
        """What must be equal in all processes, by the name that an error gives it."""
        splits = {
            f"evaluation data {name}": [
                [str(filename) for filename in split.filenames],
                split.identities.tolist(),
                split.cameras.tolist(),
            ]
            for name, split in self.splits.items()
        }
        return {"protocols": [dataclasses.astuple(p) for p in self.protocols]} | splits


def make_embed(model: PGFL, mesh: Mesh, names: Sequence[Embedding]) -> EmbedFn:
    """Compile the function from a batch to retrieval embeddings.

    Args:
        model: the network.
        mesh: the devices; the batch is split over them.
        names: ``main`` (MB: from images alone), or teachers too, which need the batch's poses.

    Returns:
        ``embed(state, batch)``, a dict from each name to (B, D) unit-length embeddings.
    """

    def embed(state: TrainState, batch: Mapping[str, Array]) -> dict[str, Array]:
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        if set(names) == {"main"}:
            outputs = model.apply(main_branch(variables), batch["images"], train=False)
        else:
            pose = batch["part_maps"], batch["visibility"]
            outputs = model.apply(variables, batch["images"], *pose, train=False)
        return {name: normalise(getattr(outputs, name).neck) for name in names}

    # The state stays where it is. Gathered, so that every process has all rows.
    shardings = None, batch_sharding(mesh)
    return jax.jit(embed, in_shardings=shardings, out_shardings=replicated(mesh))


def embed_split(
    embed: EmbedFn, state: TrainState, split: EvaluationSplit, mesh: Mesh
) -> dict[str, Float[np.ndarray, "images channels"]]:
    """Embed every image of a split: a dict from each embedding's name to (N, D).

    Raises:
        EvaluationError: an embedding is NaN or infinite; names the first images.
    """
    batches = []
    for batch in split.batches():
        inputs = {name: batch[name] for name in ("images", "part_maps", "visibility")}
        batches.append(jax.device_get(embed(state, shard_batch(inputs, mesh))))
    # The rows that fill up the last batch come after all images.
    count = len(split.filenames)
    embeddings = jax.tree.map(lambda *rows: np.concatenate(rows)[:count], *batches)
    for name, rows in embeddings.items():
        broken = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if broken.size:
            first = ", ".join(split.filenames[broken[:3]])
            raise EvaluationError(
                f"{broken.size} embeddings ({name}) are not finite, the first are of {first}"
            )
    return embeddings


def evaluate(
    embed: EmbedFn,
    state: TrainState,
    data: EvaluationData,
    config: EvalConfig,
    mesh: Mesh,
    *,
    seed: int,
) -> list[dict[str, Any]]:
    """Score every protocol with every embedding.

    Args:
        embed: from :func:`make_embed`.
        state: the parameters.
        data: splits and protocols.
        config: the evaluation options.
        mesh: the devices.
        seed: of the bootstrap.

    Returns:
        One result, ready for JSON, per embedding and protocol, in this order; fractions in [0, 1].
        If the state keeps an average, the same again for the averaged parameters.

    Raises:
        EvaluationError: embeddings that are not finite, or a protocol without any valid query.
    """
    results = _evaluate(embed, state, data, config, mesh, "trained", seed=seed)
    if state.average is not None:
        results += _evaluate(embed, state.averaged(), data, config, mesh, "average", seed=seed)
    return results


def _evaluate(
    embed: EmbedFn,
    state: TrainState,
    data: EvaluationData,
    config: EvalConfig,
    mesh: Mesh,
    parameters: str,
    *,
    seed: int,
) -> list[dict[str, Any]]:
    started = time.perf_counter()
    splits = {name: embed_split(embed, state, split, mesh) for name, split in data.splits.items()}
    embed_seconds = time.perf_counter() - started
    results = []
    for name in config.embeddings:
        for protocol in data.protocols:
            started = time.perf_counter()
            query, gallery = data.splits[protocol.query], data.splits[protocol.gallery]
            distances = 1 - splits[protocol.query][name] @ splits[protocol.gallery][name].T
            results.append(
                {
                    "dataset": protocol.dataset,
                    "protocol": protocol.name,
                    "step": int(state.step),
                    "embedding": name,
                    "parameters": parameters,
                    "distance": "cosine",
                    "rerank": False,
                    "num_query": len(query.identities),
                    "num_gallery": len(gallery.identities),
                    **scores(
                        _rank(distances, protocol, query, gallery, config),
                        query.occlusion,
                        config,
                        seed=seed,
                    ),
                    "seconds": {
                        "embed_all_splits": embed_seconds,
                        "rank": time.perf_counter() - started,
                    },
                }
            )
    return results


def _rank(
    distances: np.ndarray,
    protocol: Protocol,
    query: EvaluationSplit,
    gallery: EvaluationSplit,
    config: EvalConfig,
) -> RetrievalMetrics:
    try:
        return evaluate_retrieval(
            distances,
            query.identities,
            gallery.identities,
            query.cameras,
            gallery.cameras,
            max_rank=config.max_rank,
        )
    except ValueError as error:  # no query has a match in another camera
        raise EvaluationError(f"protocol {protocol.name}: {error}") from error


class Evaluator:
    """Evaluates states of one run as its configuration says, and writes the results.

    ``results/<protocol>.json`` holds the scores of the main branch; those of a teacher stand in
    ``results/<protocol>.<teacher>.json``, those of averaged parameters in
    ``results/<protocol>.average.json``. The newest evaluation replaces the one before it.
    """

    def __init__(
        self,
        experiment: Experiment,
        mesh: Mesh,
        data: EvaluationData,
        workdir: Path,
        *,
        suffix: str = "",
    ) -> None:
        """Prepare; ``suffix`` is added to the names of the results."""
        self._experiment, self._mesh, self._data, self._workdir = experiment, mesh, data, workdir
        self._suffix = suffix
        self._embed = make_embed(experiment.model, mesh, experiment.config.eval.embeddings)

    def dry_run(self, state: TrainState) -> None:
        """Evaluate a few images of each protocol, and forget the scores."""
        config, few = self._experiment.config, self._data.dry_run
        if few is not None:
            evaluate(self._embed, state, few, config.eval, self._mesh, seed=config.seed)

    def __call__(self, state: TrainState) -> list[dict[str, Any]]:
        """Evaluate, print and write; returns the results as :func:`evaluate` does.

        Of several processes the first one prints and writes.
        """
        config = self._experiment.config
        results = evaluate(
            self._embed, state, self._data, config.eval, self._mesh, seed=config.seed
        )
        if not is_primary():
            return results
        for result in results:
            name = result["protocol"]
            if (label := embedding_label(result)) != "main":
                name += f".{label.removeprefix('main.')}"
            write_json(self._workdir / "results" / f"{name}{self._suffix}.json", result)
        print(f"evaluation at step {int(state.step)}\n{score_table(results)}", flush=True)
        return results


def scores(
    metrics: RetrievalMetrics, occlusion: np.ndarray, config: EvalConfig, *, seed: int
) -> dict[str, Any]:
    """The scores of one ranking, with bootstrap intervals over queries and occlusion bins.

    Args:
        metrics: of the ranking.
        occlusion: (Q,) hidden share of each query's person; NaN where unknown.
        config: bins and number of resamples.
        seed: of the bootstrap.
    """
    average_precision = metrics.average_precision
    rank1 = np.where(np.isnan(average_precision), np.nan, metrics.first_match_rank == 1)
    intervals = {
        name: bootstrap_interval(values, seed=seed, resamples=config.bootstrap_resamples)
        for name, values in (("mAP", average_precision), ("rank1", rank1))
    }
    return {
        "num_valid_queries": metrics.num_valid_queries,
        "mAP": metrics.mean_ap,
        "mINP": metrics.mean_inp,
        "cmc": {str(rank): float(metrics.cmc[rank - 1]) for rank in CMC_RANKS},
        "ci95": {name: list(interval) for name, interval in intervals.items()},
        "by_occlusion": _by_occlusion(average_precision, rank1, occlusion, config.occlusion_bins),
    }


def _by_occlusion(
    average_precision: np.ndarray,
    rank1: np.ndarray,
    occlusion: np.ndarray,
    edges: Sequence[float],
) -> list[dict[str, Any]]:
    """Scores of the valid queries in each bin [lo, hi), the last one closed; no empty bins."""
    bins = []
    for lo, hi in itertools.pairwise(edges):
        below = occlusion <= hi if hi == edges[-1] else occlusion < hi
        inside = (occlusion >= lo) & below & ~np.isnan(average_precision)
        if inside.any():
            bins.append(
                {
                    "bin": [lo, hi],
                    "queries": int(inside.sum()),
                    "mAP": float(average_precision[inside].mean()),
                    "rank1": float(rank1[inside].mean()),
                }
            )
    return bins


def evaluate_checkpoint(
    config: Config, workdir: Path, data: EvaluationData
) -> list[dict[str, Any]]:
    """Evaluate the checkpoint of ``workdir`` that ``config.eval.checkpoint`` names.

    Results of the newest checkpoint are written as ``results/<protocol>.json``, those of others as
    ``results/<protocol>.best.json`` or ``.untrained.json``. An untrained network needs no run.

    Raises:
        ConfigError: the run was made with another configuration.
        CheckpointError: there is no checkpoint, or it is damaged.
    """
    mesh = make_mesh(model=config.mesh.model)
    choice = config.eval.checkpoint
    if choice == "untrained":
        # The classifiers, whose size is that of the training set, take no part.
        experiment = Experiment.create(config, num_identities=1, num_images=config.data.batch_size)
        return Evaluator(experiment, mesh, data, workdir, suffix=".untrained")(
            experiment.init_state(mesh)
        )
    manifest = read_run(workdir, config)
    experiment = Experiment.create(
        config, num_identities=manifest["num_identities"], num_images=manifest["num_images"]
    )
    with open_checkpoints(workdir, read_only=True) as checkpoints:
        step = agreed_step(checkpoints.best if choice == "best" else checkpoints.newest)
        if step is None:
            raise CheckpointError(f"{workdir}/checkpoints: no checkpoint; train first")
        state = checkpoints.restore(experiment.abstract_state(), mesh, step)
    suffix = ".best" if choice == "best" else ""
    return Evaluator(experiment, mesh, data, workdir, suffix=suffix)(state)
