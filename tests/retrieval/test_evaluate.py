import dataclasses

import jax
import numpy as np
import pytest

from pgfl_jax.distributed.sharding import make_mesh
from pgfl_jax.errors import UserError
from pgfl_jax.experiment import Experiment
from pgfl_jax.retrieval import evaluate_retrieval, k_reciprocal_distances, reranking
from pgfl_jax.retrieval.embeddings import embed_split, make_embed
from pgfl_jax.retrieval.evaluate import Evaluator, evaluate
from pgfl_jax.retrieval.protocols import (
    EvaluationData,
    EvaluationError,
    EvaluationSplit,
    Protocol,
)
from pgfl_jax.retrieval.results import scores
from pgfl_jax.train_state import TrainState

BATCH = 4


def _split(vectors, identities, cameras, occlusion=None, has_pose=None):
    """A split whose "images" hold their own embedding, served in padded batches."""
    vectors = np.asarray(vectors, np.float32)
    has_pose = np.ones(len(vectors)) if has_pose is None else np.asarray(has_pose)

    def batches():
        for start in range(0, len(vectors), BATCH):
            rows = vectors[start : start + BATCH]
            valid = (np.arange(BATCH) < len(rows)).astype(np.float32)
            images = np.full((BATCH, vectors.shape[1]), np.nan, np.float32)  # padding must not show
            images[: len(rows)] = rows
            visibility = np.zeros((BATCH, 8), np.float32)
            visibility[: len(rows), 2] = has_pose[start : start + BATCH]
            yield {"images": images, "part_maps": images, "visibility": visibility, "valid": valid}

    count = len(vectors)
    return EvaluationSplit(
        filenames=np.array([f"{i}.jpg" for i in range(count)], object),
        identities=np.asarray(identities),
        cameras=np.asarray(cameras),
        occlusion=np.full(count, np.nan) if occlusion is None else np.asarray(occlusion),
        batches=batches,
    )


def _read_images(state, batch):
    usable = batch["visibility"][:, 2] > 0
    return {"main": batch["images"], "foreground": batch["images"]}, usable


STATE = TrainState(step=7, params={}, batch_stats={}, opt_state=(), average=None)


def _scores(data, config, mesh):
    return [e.scores for e in evaluate(_read_images, STATE, data, config, mesh, seed=0)]


def test_a_hand_made_ranking_gets_its_scores(tiny_config):
    config = dataclasses.replace(tiny_config().eval, occlusion_bins=(0.0, 0.5, 1.0))
    angles = np.radians([0, 10, 20, 30, 40, 90])
    gallery = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    data = EvaluationData(
        splits={
            # Query 0 at 0 degrees: its own camera's image (0°) is junk, so the hits of identity 1
            # (20°, 40°) rank 2 and 4: AP = (1/2 + 2/4) / 2. Query 1 at 90°: identity 3 ranks 1.
            "query": _split([[1, 0], [0, 1]], [1, 3], [0, 0], [0.3, 0.7]),
            "gallery": _split(gallery, [1, 2, 1, 2, 1, 3], [0, 1, 1, 1, 1, 1]),
        },
        protocols=[Protocol("toy", "by hand", "query", "gallery")],
    )
    mesh = make_mesh(jax.devices()[:2])
    (result,) = _scores(data, config, mesh)
    assert result["mAP"] == pytest.approx((0.5 + 1) / 2)
    assert result["mINP"] == pytest.approx((2 / 4 + 1) / 2)
    assert result["cmc"] == {"1": 0.5, "3": 1.0, "5": 1.0, "10": 1.0, "20": 1.0}
    assert result["by_occlusion"] == [
        {"bin": [0.0, 0.5], "queries": 1, "mAP": pytest.approx(0.5), "rank1": 0.0},
        {"bin": [0.5, 1.0], "queries": 1, "mAP": 1.0, "rank1": 1.0},
    ]
    assert result["ci95"]["rank1"] == [0.0, 1.0]
    described = {
        "dataset": "by hand",
        "protocol": "toy",
        "step": 7,
        "embedding": "main",
        "distance": "cosine",
        "rerank": False,
        "num_query": 2,
        "num_gallery": 6,
        "num_valid_queries": 2,
    }
    assert {name: result[name] for name in described} == described


def test_padding_rows_leave_and_order_stays():
    vectors = _unit_vectors(6)
    split = _split(vectors, np.zeros(6), np.zeros(6))
    mesh = make_mesh(jax.devices()[:2])
    embedded = embed_split(_read_images, STATE, split, mesh)
    np.testing.assert_array_equal(embedded.rows["main"], vectors)


def _unit_vectors(count):
    angles = np.arange(count)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({5: [1, np.inf]}, r"1 of 6 embeddings \(\w+\) are zero or not finite.* of 5\.jpg;"),
        ({4: [0, np.nan]}, r"1 of 6 embeddings \(\w+\) are zero or not finite.* of 4\.jpg;"),
        # What weights of NaN give on CPUs, where a ReLU turns them into 0.
        ({1: [0, 0], 3: [0, 0]}, r"2 of 6 embeddings .* zero or not finite.* of 1\.jpg, 3\.jpg;"),
        (
            {row: [0.6, 0.8] for row in range(6)},
            r"all 6 embeddings \(\w+\) are equal, from 0\.jpg",
        ),
        # What a collapsed network gives: float32 cannot rank these, though no two are the same.
        (
            {row: [0.6 + 8e-8 * row, 0.8 - 6e-8 * row] for row in range(6)},
            r"all 6 embeddings \(\w+\) are equal but for rounding, from 0\.jpg",
        ),
    ],
)
def test_embeddings_that_mean_nothing_are_refused(broken, message):
    vectors = _unit_vectors(6)
    for row, values in broken.items():
        vectors[row] = values
    split = _split(vectors, np.zeros(6), np.zeros(6))
    with pytest.raises(EvaluationError, match=message):
        embed_split(_read_images, STATE, split, make_mesh(jax.devices()[:1]))


def test_a_teacher_is_scored_on_the_images_with_a_pose(tiny_config):
    config = dataclasses.replace(tiny_config().eval, embeddings=("main", "foreground"))
    # Query 0 at 0 degrees. With all images its matches, at 20° and 60°, rank 2 and 4. Without
    # those at 10° and 60°, which have no pose, its only match ranks 1. Query 1 has no pose.
    angles = np.radians([10, 20, 30, 60])
    gallery = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    data = EvaluationData(
        splits={
            "query": _split([[1, 0], [0, 1]], [1, 2], [0, 0], has_pose=[1, 0]),
            "gallery": _split(gallery, [2, 1, 2, 1], [1, 1, 1, 1], has_pose=[0, 1, 1, 0]),
        },
        protocols=[Protocol("toy", "by hand", "query", "gallery")],
    )
    mesh = make_mesh(jax.devices()[:2])
    main, teacher = _scores(data, config, mesh)
    # Query 1 at 90 degrees finds 60° (wrong), 30°, 20° (wrong), 10°.
    assert main["mAP"] == pytest.approx(((1 / 2 + 2 / 4) + (1 / 2 + 2 / 4)) / 4)
    assert (main["num_query"], main["num_gallery"]) == (2, 4) and "without_pose" not in main
    assert teacher["mAP"] == 1.0
    assert (teacher["num_query"], teacher["num_gallery"]) == (1, 2)
    assert teacher["without_pose"] == {"query": 1, "gallery": 2}


def test_re_ranking_is_scored_beside_the_plain_ranking(tiny_config, capsys):
    config = dataclasses.replace(tiny_config().eval, rerank=True)
    rng = np.random.default_rng(0)
    rows = np.repeat(rng.normal(size=(6, 8)), 5, axis=0) + 0.8 * rng.normal(size=(30, 8))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    identities, cameras = np.repeat(np.arange(6), 5), np.tile([0, 1, 1, 1, 1], 6)
    first = cameras == 0
    splits = {
        "query": _split(rows[first], identities[first], cameras[first]),
        "gallery": _split(rows[~first], identities[~first], cameras[~first]),
        "single": _split(rows[1::5], identities[1::5], cameras[1::5]),
    }
    protocols = [Protocol(name, "toy", "query", name) for name in ("gallery", "single")]
    mesh = make_mesh(jax.devices()[:2])
    data = EvaluationData(splits, protocols)
    plain, again, *_ = _scores(data, config, mesh)
    assert [plain["rerank"], again["rerank"]] == [False, True]
    query, gallery = (np.float32(rows[chosen]) for chosen in (first, ~first))
    for result, distances in (
        (plain, 1 - query @ gallery.T),
        (again, k_reciprocal_distances(query, gallery)),
    ):
        expected = evaluate_retrieval(
            distances, identities[first], identities[~first], cameras[first], cameras[~first]
        )
        assert result["mAP"] == expected.mean_ap
    assert plain["mAP"] != again["mAP"]
    assert capsys.readouterr().err == (
        "warning: single: the gallery has one image of each person, and re-ranking presumes "
        "several\n"
    )


def test_the_files_of_re_ranked_scores(tiny_config, tmp_path, monkeypatch):
    config = tiny_config(**{"eval.rerank": True})
    experiment = Experiment.create(config, num_identities=4, num_images=64)
    vectors = _unit_vectors(8)
    data = EvaluationData(
        splits={
            "query": _split(vectors[:2], [0, 1], [0, 0]),
            "gallery": _split(vectors[2:], [0, 1, 0, 1, 0, 1], [1] * 6),
        },
        protocols=[Protocol("toy", "by hand", "query", "gallery")],
    )
    mesh = make_mesh(jax.devices()[:2])
    evaluator = Evaluator(experiment, mesh, data, tmp_path, suffix=".best")
    monkeypatch.setattr(evaluator, "_embed", _read_images)
    evaluator(STATE)
    names = {path.name for path in (tmp_path / "results").iterdir()}
    assert names == {
        "toy.best.json", "toy.queries.best.parquet", "toy.calibration.best.json",
        "toy.rerank.best.json", "toy.rerank.queries.best.parquet",
    }  # fmt: skip
    monkeypatch.setattr(reranking, "_available_bytes", lambda: 0)
    with pytest.raises(UserError, match="re-ranking 8 images needs"):
        evaluator.dry_run(STATE)  # before training, not hours later


def test_a_skipped_query_leaves_every_denominator(tiny_config):
    metrics = evaluate_retrieval(
        np.array([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]]),
        np.array([1, 9, 1]), np.array([1, 2]), np.zeros(3), np.ones(2), max_rank=20,
    )  # fmt: skip
    result = scores(metrics, np.array([0.25, 0.25, 0.25]), tiny_config().eval, seed=0)
    assert result["num_valid_queries"] == 2
    assert result["mAP"] == pytest.approx(0.75)
    assert result["by_occlusion"] == [
        {"bin": [0.2, 0.3], "queries": 2, "mAP": pytest.approx(0.75), "rank1": 0.5}
    ]


def test_embeddings_are_the_unit_length_necks(tiny_config):
    config = tiny_config()
    experiment = Experiment.create(config, num_identities=4, num_images=64)
    mesh = make_mesh(jax.devices()[:2])
    state = experiment.init_state(mesh)
    rng = np.random.default_rng(0)
    batch = {
        "images": rng.normal(size=(4, 64, 32, 3)).astype(np.float32),
        "part_maps": rng.uniform(size=(4, 8, 4, 8)).astype(np.float32),
        "visibility": np.float32([[1] * 8, [0] * 7 + [0.3], [0] * 8, [1] * 8]),
    }
    outputs = experiment.model.apply(
        {"params": state.params, "batch_stats": state.batch_stats},
        *(jax.numpy.asarray(value) for value in batch.values()),
        train=False,
    )
    names = ("main", "foreground", "parts")
    every, usable = make_embed(experiment, mesh, names)(state, batch)
    alone, all_of_them = make_embed(experiment, mesh, ("main",))(state, batch)
    assert usable.tolist() == [True, True, False, True] and all_of_them.all()
    np.testing.assert_allclose(alone["main"], every["main"], rtol=1e-5, atol=1e-6)
    for name in names:
        neck = np.asarray(getattr(outputs, name).neck)
        expected = neck / np.maximum(np.linalg.norm(neck, axis=1, keepdims=True), 1e-6)
        np.testing.assert_allclose(every[name], expected, rtol=1e-4, atol=1e-5)


def test_flipped_and_joined_embeddings(tiny_config, small_network):
    """Each way computed from the network's outputs in NumPy."""
    rng = np.random.default_rng(0)
    batch = {
        "images": rng.normal(size=(4, 64, 32, 3)).astype(np.float32),
        "part_maps": rng.uniform(size=(4, 8, 4, 8)).astype(np.float32),
        "visibility": rng.uniform(0.3, 1, size=(4, 8)).astype(np.float32),
    }
    names, mesh = ("main", "foreground", "parts", "joined"), make_mesh(jax.devices()[:2])
    swapped = [0, 1, 3, 2, 5, 4, 7, 6]
    mirrored = {
        "images": batch["images"][:, :, ::-1],
        "part_maps": batch["part_maps"][:, :, ::-1][..., swapped],
        "visibility": batch["visibility"][:, swapped],
    }
    configs = [
        tiny_config(**{"eval.flip": True, "eval.distance": distance})
        for distance in ("cosine", "euclidean")
    ]
    cosine, euclidean = (
        Experiment.create(config, num_identities=4, num_images=64) for config in configs
    )
    state = cosine.init_state(mesh)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    apply = jax.jit(lambda *inputs: cosine.model.apply(variables, *inputs, train=False))
    outputs = [apply(*map(np.ascontiguousarray, side.values())) for side in (batch, mirrored)]
    means = {
        name: np.mean([getattr(output, name).neck for output in outputs], axis=0)
        for name in names[:3]
    }
    found, _ = make_embed(euclidean, mesh, names)(state, batch)
    for name, rows in means.items():
        np.testing.assert_allclose(found[name], rows, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(
        found["joined"], np.concatenate([found[name] for name in means], axis=1)
    )
    found, _ = make_embed(cosine, mesh, names)(state, batch)
    alone, _ = make_embed(cosine, mesh, ("main",))(state, batch)
    unit = {name: rows / np.linalg.norm(rows, axis=1)[:, None] for name, rows in means.items()}
    joined = np.concatenate([*unit.values()], axis=1) / np.sqrt(3)
    for name, rows in (unit | {"joined": joined}).items():
        np.testing.assert_allclose(found[name], rows, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(alone["main"], unit["main"], rtol=1e-4, atol=1e-5)


def test_euclidean_distances_of_rows_as_they_are(tiny_config):
    config = dataclasses.replace(tiny_config().eval, distance="euclidean", flip=True)
    # The longer row of identity 1 is nearer to the query by its direction, farther by distance.
    data = EvaluationData(
        splits={
            "query": _split([[1, 0]], [1], [0]),
            "gallery": _split([[9, 1], [1.5, 0.5]], [1, 2], [1, 1]),
        },
        protocols=[Protocol("toy", "by hand", "query", "gallery")],
    )
    mesh = make_mesh(jax.devices()[:1])
    (result,) = evaluate(_read_images, STATE, data, config, mesh, seed=0)
    assert result.scores["mAP"] == 0.5
    assert (result.scores["distance"], result.scores["flip"]) == ("euclidean", True)
    nearest = result.queries.nearest
    assert nearest.indices.tolist() == [[1, 0]]
    np.testing.assert_allclose(nearest.distances, [[np.sqrt(0.5), np.sqrt(65)]], rtol=1e-6)
    assert result.calibration["scored"]["distance"] == "euclidean"
    # The largest distance that is possible ends the bins.
    limit = 1 + np.sqrt(82)
    assert result.calibration["bins"]["limit"] == pytest.approx(limit)
    data.splits["query"] = _split([[np.inf, 0]], [1], [0])
    with pytest.raises(EvaluationError, match="zero or not finite"):
        evaluate(_read_images, STATE, data, config, mesh, seed=0)


def test_a_protocol_without_a_match_is_named(tiny_config):
    data = EvaluationData(
        splits={"query": _split([[1, 0]], [1], [0]), "gallery": _split([[1, 0]], [2], [1])},
        protocols=[Protocol("toy", "by hand", "query", "gallery")],
    )
    mesh = make_mesh(jax.devices()[:1])
    with pytest.raises(EvaluationError, match="protocol toy: ") as error:
        evaluate(_read_images, STATE, data, tiny_config().eval, mesh, seed=0)
    assert "\n" not in str(error.value)
