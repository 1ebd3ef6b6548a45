"""Retrieval evaluation: embed the splits, rank every protocol's gallery, write the scores."""

import functools
import itertools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from pgfl_jax.checkpoint import choose_step, open_checkpoints
from pgfl_jax.config import Config, EvalConfig
from pgfl_jax.distributed.collectives import agreed_step, is_primary, processes_here
from pgfl_jax.distributed.sharding import make_mesh
from pgfl_jax.experiment import Experiment, Pretrained
from pgfl_jax.report.manifest import check_same_run, read_run
from pgfl_jax.report.writers import replace_bytes, score_table, write_json
from pgfl_jax.retrieval.calibration import calibrate
from pgfl_jax.retrieval.embeddings import EmbedFn, embed_split, make_embed
from pgfl_jax.retrieval.pairs import PairCounter
from pgfl_jax.retrieval.protocols import EvaluationData, Images, Protocol
from pgfl_jax.retrieval.query_results import query_results
from pgfl_jax.retrieval.ranking import largest_distance, protocol_labels, rank_protocol
from pgfl_jax.retrieval.reranking import check_memory, rerank_protocol
from pgfl_jax.retrieval.results import Evaluation, protocol_facts, result_path, scores
from pgfl_jax.train_state import TrainState


def evaluate(
    embed: EmbedFn,
    state: TrainState,
    data: EvaluationData,
    config: EvalConfig,
    mesh: Mesh,
    *,
    seed: int,
) -> list[Evaluation]:
    """Score every protocol with every embedding.

    Args:
        embed: from :func:`pgfl_jax.retrieval.embeddings.make_embed`.
        state: the parameters.
        data: splits and protocols.
        config: the evaluation options.
        mesh: the devices.
        seed: of the bootstrap.

    Returns:
        One result per embedding and protocol, in this order.
        The scores after re-ranking, if the options ask for them, follow the plain ones. A teacher
        is scored on the images with a pose; ``without_pose`` counts the others.
        If the state keeps an average, the results of the averaged parameters follow.

    Raises:
        EvaluationError: embeddings that mean nothing, or a protocol without any valid query.
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
) -> list[Evaluation]:
    """The results of one set of parameters, which ``parameters`` names."""
    started = time.perf_counter()
    embedded = {
        name: embed_split(embed, state, split, mesh, distance=config.distance)
        for name, split in data.splits.items()
    }
    embed_seconds = time.perf_counter() - started
    results = []
    for embedding, protocol in itertools.product(config.embeddings, data.protocols):
        usable = {name: split.usable(embedding) for name, split in embedded.items()}
        rows = {name: split.rows[embedding][usable[name]] for name, split in embedded.items()}
        images = {name: split.select(usable[name]) for name, split in data.splits.items()}
        origin = {"step": int(state.step), "embedding": embedding, "parameters": parameters}
        query, gallery = images[protocol.query], images[protocol.gallery]
        counts: dict[str, Any] = {"num_query": len(query), "num_gallery": len(gallery)}
        if embedding != "main":
            counts["without_pose"] = {
                "query": int((~usable[protocol.query]).sum()),
                "gallery": int((~usable[protocol.gallery]).sum()),
            }
        for rerank in (False, True) if config.rerank else (False,):
            started = time.perf_counter()
            facts = protocol_facts(protocol, images, config, rerank=rerank, **origin)
            result = _result(rows, protocol, images, facts, config, mesh, seed=seed)
            rank_seconds = time.perf_counter() - started
            seconds = {"embed_all_splits": embed_seconds, "rank": rank_seconds}
            whole = facts | counts | result.scores | {"seconds": seconds}
            results.append(result._replace(scores=whole))
    return results


def _result(
    rows: Mapping[str, np.ndarray],
    protocol: Protocol,
    images: Mapping[str, Images],
    facts: Mapping[str, Any],
    config: EvalConfig,
    mesh: Mesh,
    *,
    seed: int,
) -> Evaluation:
    """Rank, score and calibrate; ``facts`` says what is ranked."""
    query, gallery = images[protocol.query], images[protocol.gallery]
    calibration = None
    if facts["rerank"]:
        ranked = rerank_protocol(rows, protocol, images, max_rank=config.max_rank)
    else:
        limit = largest_distance(rows[protocol.query], rows[protocol.gallery], config.distance)
        pairs = PairCounter(protocol_labels(protocol, images), limit=limit)
        ranked = rank_protocol(
            rows,
            protocol,
            images,
            max_rank=config.max_rank,
            distance=config.distance,
            mesh=mesh,
            pairs=pairs,
        )
        calibration = {"scored": facts} | calibrate(
            pairs.result(),
            config.false_accept_rates,
            seed=seed,
            resamples=config.bootstrap_resamples,
        )
    scored = scores(ranked.metrics, query.occlusion, config, seed=seed)
    queries = query_results(query, gallery, ranked.metrics, ranked.nearest, facts)
    return Evaluation(scored, queries, calibration)


class Evaluator:
    """Evaluates states of one run as its configuration says, and writes the results.

    ``results/<protocol>.json`` holds the scores of the main branch. Those of a teacher are in
    ``results/<protocol>.<teacher>.json``, those of averaged parameters in
    ``results/<protocol>.average.json``, and those after re-ranking in
    ``results/<protocol>.rerank.json``. Beside each, ``results/<protocol>.queries.parquet`` holds
    the result of each query (:mod:`pgfl_jax.retrieval.queries`), and, unless it is re-ranked,
    ``results/<protocol>.calibration.json`` the error rates over thresholds
    (:mod:`pgfl_jax.retrieval.calibration`). The newest evaluation replaces the one before it.
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
        self._embed = make_embed(experiment, mesh, experiment.config.eval.embeddings)

    def dry_run(self, state: TrainState) -> None:
        """Evaluate a few images of each protocol, and forget the scores.

        Raises:
            UserError: re-ranking needs more memory than the machine has.
        """
        if self._experiment.config.eval.rerank:
            for protocol in self._data.protocols:
                sides = protocol.query, protocol.gallery
                sizes = (len(self._data.splits[name]) for name in sides)
                check_memory(*sizes, processes=processes_here())
        if self._data.dry_run is not None:
            self._evaluate(state, self._data.dry_run)

    def __call__(self, state: TrainState) -> list[dict[str, Any]]:
        """Evaluate, print and write; returns the scores of each result of :func:`evaluate`.

        With several processes, process 0 alone prints and writes.
        """
        evaluations = self._evaluate(state, self._data)
        results = [evaluation.scores for evaluation in evaluations]
        if not is_primary():
            return results
        for evaluation in evaluations:
            self._write(evaluation)
        print(f"evaluation at step {int(state.step)}\n{score_table(results)}", flush=True)
        return results

    def _write(self, evaluation: Evaluation) -> None:
        """Write the files of a result, its scores last."""
        from pgfl_jax.retrieval.queries import encode_queries  # late: pyarrow is slow to import

        path = functools.partial(result_path, self._workdir / "results", evaluation.scores)
        queries = path(kind="queries", suffix=f"{self._suffix}.parquet")
        queries.parent.mkdir(exist_ok=True)
        replace_bytes(queries, encode_queries(evaluation.queries))
        if evaluation.calibration:
            write_json(
                path(kind="calibration", suffix=f"{self._suffix}.json"), evaluation.calibration
            )
        write_json(path(suffix=f"{self._suffix}.json"), evaluation.scores)

    def _evaluate(self, state: TrainState, data: EvaluationData) -> list[Evaluation]:
        config = self._experiment.config
        return evaluate(self._embed, state, data, config.eval, self._mesh, seed=config.seed)


def evaluate_checkpoint(
    config: Config,
    workdir: Path,
    data: EvaluationData,
    *,
    pretrained: Pretrained | None = None,
) -> list[dict[str, Any]]:
    """Evaluate the checkpoint of ``workdir`` that ``config.eval.checkpoint`` names.

    Results of the newest checkpoint are written as ``results/<protocol>.json``, those of others as
    ``results/<protocol>.best.json``, ``.step30.json`` or ``.untrained.json``. An untrained network
    needs no run; it starts from ``pretrained``, as :meth:`Experiment.init_state` does.

    Raises:
        ConfigError: the run, or this checkpoint, was made with another configuration.
        CheckpointError: there is no checkpoint, or it is damaged.
    """
    mesh = make_mesh(model=config.mesh.model)
    choice = config.eval.checkpoint
    if choice == "untrained":
        experiment = Experiment.without_data(config)
        return Evaluator(experiment, mesh, data, workdir, suffix=".untrained")(
            experiment.init_state(mesh, pretrained)
        )
    manifest = read_run(workdir, config)
    experiment = Experiment.create(
        config, num_identities=manifest["num_identities"], num_images=manifest["num_images"]
    )
    with open_checkpoints(workdir, read_only=True) as checkpoints:
        if choice.isdecimal():
            step = agreed_step(choose_step(workdir, choice))
        else:
            step = agreed_step(checkpoints.best if choice == "best" else checkpoints.newest)
        if step is None:
            step = choose_step(workdir, choice)  # says what is missing
        shardings = experiment.state_shardings(mesh)
        state = checkpoints.restore(experiment.abstract_state(), shardings, step)
        check_same_run(workdir, step, config)
    suffix = f".step{step}" if choice.isdecimal() else {"best": ".best", "newest": ""}[choice]
    return Evaluator(experiment, mesh, data, workdir, suffix=suffix)(state)
