"""Error rates over thresholds, against counting pair by pair."""

import json

import jax
import numpy as np
import pytest

from pgfl_jax.distributed.sharding import make_mesh
from pgfl_jax.errors import UserError
from pgfl_jax.retrieval import evaluate_retrieval
from pgfl_jax.retrieval import pairs as pairs_module
from pgfl_jax.retrieval.calibration import (
    calibrate,
    equal_error,
    exact_curve,
    operating_point,
    suggested,
)
from pgfl_jax.retrieval.metrics import Labels
from pgfl_jax.retrieval.pairs import BINS, FINE, PairCounter
from pgfl_jax.retrieval.ranking import cosine_distances, euclidean_blocks
from pgfl_jax.retrieval.sharded import distance_blocks, evaluate_embeddings

RATES = 1e-4, 1e-3, 1e-2, 1e-1
WIDTH = 4 / BINS  # of the widest bin


def _people(seed, queries=30, gallery=120, identities=12, cameras=3):
    """Labels and distances, matches nearer on the average; rounded, so that some tie."""
    rng = np.random.default_rng(seed)
    labels = Labels(
        *(rng.integers(identities, size=size) for size in (queries, gallery)),
        *(rng.integers(cameras, size=size) for size in (queries, gallery)),
    )
    same = labels.query_ids[:, None] == labels.gallery_ids
    distances = rng.normal(np.where(same, 0.7, 1.0), 0.15).clip(0, 2).round(2).astype(np.float32)
    return labels, distances


def _kinds(labels):
    """Which pairs are matches, and which are impostors: (Q, G) each."""
    same = labels.query_ids[:, None] == labels.gallery_ids
    return same & (labels.query_cameras[:, None] != labels.gallery_cameras), ~same


def _counted(labels, distances, *, block=7, **options):
    counter = PairCounter(labels, **options)
    for start in range(0, len(distances), block):
        counter.add(distances[start : start + block])
    return counter.result()


def _by_hand(matches, impostors, rate):
    """The best threshold among all distances, trying each."""
    best = None
    for threshold in np.unique(np.concatenate([matches, impostors])):
        if np.mean(impostors <= threshold) <= rate:
            best = threshold, np.mean(matches <= threshold), np.mean(impostors <= threshold)
    return best


@pytest.mark.parametrize("seed", range(20))
def test_rates_are_those_counted_pair_by_pair(seed):
    labels, distances = _people(seed)
    match, impostor = _kinds(labels)
    calibration = calibrate(_counted(labels, distances), RATES, seed=0, resamples=20)
    assert calibration["pairs"] == {
        "matches": match.sum(),
        "impostors": impostor.sum(),
        "junk": (~match & ~impostor).sum(),
    }
    for point in calibration["operating_points"]:
        if point["far"] * impostor.sum() < 1:
            assert point["threshold"] is point["tar"] is point["tar_ci95"] is None
            continue
        expected = _by_hand(distances[match], distances[impostor], point["far"])
        if expected is None:  # more impostors than allowed are the nearest of all
            assert (point["threshold"], point["tar"], point["measured_far"]) == (None, 0, 0)
        else:
            found = point["threshold"], point["tar"], point["measured_far"]
            assert found == pytest.approx(expected, rel=1e-6)
    json.dumps(calibration, allow_nan=False)


@pytest.mark.parametrize("seed", range(10))
def test_the_equal_error_rate_is_where_the_lines_cross(seed):
    labels, distances = _people(seed)
    match, impostor = (distances[kind] for kind in _kinds(labels))
    found = calibrate(_counted(labels, distances), RATES, seed=0, resamples=20)["eer"]["rate"]
    thresholds = [-1.0, *np.unique(distances)]
    far = [np.mean(impostor <= t) for t in thresholds]
    frr = [np.mean(match > t) for t in thresholds]
    # A walk along the line in small steps.
    steps = np.linspace(0, len(thresholds) - 1, 400_001)
    places = np.arange(len(thresholds))
    at = np.argmax(np.interp(steps, places, far) >= np.interp(steps, places, frr))
    assert found == pytest.approx(np.interp(steps[at], places, far), abs=1e-4)


def test_rates_of_curves_without_an_overlap_or_with_nothing_else():
    apart = exact_curve([0.1, 0.2], [0.3, 0.4])
    assert equal_error(apart.far, apart.tar) == 0
    assert operating_point(apart, 0.5) == (0.3, 1.0, 0.5)
    tied = exact_curve([0.5] * 4, [0.5] * 4)
    assert equal_error(tied.far, tied.tar) == 0.5
    assert operating_point(tied, 0.5) == (None, 0.0, 0.0)
    wrong_way = exact_curve([0.3, 0.4], [0.1, 0.2])
    assert equal_error(wrong_way.far, wrong_way.tar) == 1


def test_as_many_impostors_as_a_rate_needs():
    curve = exact_curve([0.05], np.arange(1, 1001) / 1000)
    assert operating_point(curve, 1e-3) == (pytest.approx(0.001), 0.0, 0.001)
    assert operating_point(curve, 0.3).far == 0.3
    assert operating_point(curve, 0.9e-3) is None


def test_nan_is_refused():
    labels, distances = _people(0)
    distances[9, 4] = np.nan
    with pytest.raises(ValueError, match="distance of query 9 to gallery item 4 is nan"):
        _counted(labels, distances)
    for values in ([0.1, np.nan], [np.inf], []):
        with pytest.raises(ValueError, match="needs finite distances"):
            exact_curve([0.1], values)
        with pytest.raises(ValueError, match="needs finite distances"):
            exact_curve(values, [0.1])


@pytest.mark.parametrize("seed", range(3))
def test_many_impostors_are_counted_in_bins(seed):
    labels, distances = _people(seed, gallery=300)
    distances += np.random.default_rng(seed).uniform(-5e-3, 5e-3, distances.shape)  # no ties
    exact, binned = (_counted(labels, distances, exact=size) for size in (10**6, 0))
    assert binned.impostors is None and exact.pooled.size == 0
    edges = 2 * np.linspace(0, 1, BINS * FINE + 1) ** 2
    match, impostor = (distances[kind] for kind in _kinds(labels))
    # A float32 near an edge may be in the other bin.
    far_off = np.cumsum(binned.pooled) - np.cumsum(np.histogram(impostor, edges)[0])
    assert np.abs(far_off).max() <= 1 and np.mean(far_off != 0) < 0.01
    first, second = (calibrate(p, RATES, seed=0, resamples=50) for p in (exact, binned))
    assert (first["bins"]["thresholds"], second["bins"]["thresholds"]) == (0, BINS * FINE)
    for ours, theirs in zip(first["operating_points"], second["operating_points"], strict=True):
        assert ours["threshold_ci95"] == theirs["threshold_ci95"]
        if ours["threshold"] is None:
            continue
        # The last edge before the first impostor too many.
        nearest = np.sort(impostor)[int(ours["far"] * len(impostor))]
        edge = edges[edges <= nearest][-1]
        assert theirs["threshold"] == pytest.approx(edge, abs=WIDTH / FINE)
        assert theirs["tar"] == pytest.approx(np.mean(match < edge), abs=1e-2)
        assert theirs["measured_far"] == pytest.approx(
            ours["measured_far"], abs=1.01 / len(impostor)
        )
    assert second["eer"]["rate"] == pytest.approx(first["eer"]["rate"], abs=1e-3)
    for ours, theirs in zip(first["camera_pairs"], second["camera_pairs"], strict=True):
        assert ours["eer"] == theirs["eer"]


def test_distances_on_the_edge_of_a_bin_are_not_accepted():
    labels, distances = _people(0)
    match, impostor = _kinds(labels)
    distances = np.where(impostor, 0.5, 0.25).astype(np.float32)  # 0.5 is an edge
    found = calibrate(_counted(labels, distances, exact=0), (1e-2,), seed=0, resamples=2)
    (point,) = found["operating_points"]
    assert np.mean(distances[impostor] <= point["threshold"]) == point["measured_far"] == 0
    assert np.mean(distances[match] <= point["threshold"]) == point["tar"] == 1


def test_intervals_of_an_embedding_whose_distances_are_all_small():
    labels, distances = _people(1, queries=60, gallery=200)
    distances += np.random.default_rng(5).uniform(-5e-3, 5e-3, distances.shape)
    # The bins are even in the square root: at a hundredth of the distance, a tenth as wide.
    near, far = (
        calibrate(_counted(labels, distances * scale), (1e-2,), seed=7, resamples=300)
        for scale in (np.float32(0.01), 1)
    )
    for name in ("threshold", "threshold_ci95"):
        found, expected = (np.array(c["operating_points"][0][name]) for c in (near, far))
        np.testing.assert_allclose(100 * found, expected, atol=5 * 10 * WIDTH)
    assert near["operating_points"][0]["tar_ci95"] == pytest.approx(
        far["operating_points"][0]["tar_ci95"], abs=0.02
    )


def test_blocks_may_be_of_any_size():
    labels, distances = _people(3)
    first, *others = (_counted(labels, distances, block=size) for size in (1, 7, 30))
    match = _kinds(labels)[0]
    rows, items = np.nonzero(match)
    assert sorted(zip(first.match_rows, first.matches, strict=True)) == sorted(
        zip(rows, distances[rows, items], strict=True)
    )
    for other in others:
        for name in ("matches", "impostors", "by_group", "by_cameras", "match_cameras"):
            np.testing.assert_array_equal(getattr(other, name), getattr(first, name))


def test_intervals_are_of_people_drawn_again():
    """Each resample counted pair by pair; the bins' edges are the only difference."""
    labels, distances = _people(1, queries=60, gallery=200)
    distances += np.random.default_rng(5).uniform(-5e-3, 5e-3, distances.shape)
    calibration = calibrate(_counted(labels, distances), (1e-2,), seed=7, resamples=300)
    people, group = np.unique(labels.query_ids, return_inverse=True)
    match, impostor = _kinds(labels)
    rng = np.random.default_rng(7)
    found = []
    for drawn in rng.multinomial(len(people), np.full(len(people), 1 / len(people)), size=300):
        times = drawn[group]
        near, far = (
            np.sort(np.concatenate([row[kind] for row, kind in zip(
                np.repeat(distances, times, axis=0), np.repeat(side, times, axis=0), strict=True
            )]))
            for side in (match, impostor)
        )  # fmt: skip
        threshold = far[int(1e-2 * len(far)) - 1]
        found.append((threshold, np.mean(near <= threshold)))
    low, high = np.quantile(found, [0.025, 0.975], axis=0)
    (point,) = calibration["operating_points"]
    assert point["threshold_ci95"] == pytest.approx([low[0], high[0]], abs=5 * WIDTH)
    assert point["tar_ci95"] == pytest.approx([low[1], high[1]], abs=0.01)
    assert point["threshold_ci95"][0] < point["threshold"] < point["threshold_ci95"][1]
    assert point["measured_far_ci95"][0] < 0.01 < point["measured_far_ci95"][1]
    eer = calibration["eer"]
    assert eer["ci95"][0] < eer["rate"] < eer["ci95"][1]
    again = calibrate(_counted(labels, distances), (1e-2,), seed=7, resamples=300)
    assert again == calibration


def test_one_person_has_no_interval():
    labels, distances = _people(0, queries=1, gallery=200, identities=2)
    calibration = calibrate(_counted(labels, distances), (0.1,), seed=0, resamples=20)
    (point,) = calibration["operating_points"]
    assert 0 < point["threshold"] < 1 and point["threshold_ci95"] is None
    assert calibration["eer"]["ci95"] is None


def test_resamples_without_a_match_are_left_out():
    """One of three people has matches; about a third of the resamples draw the other two alone."""
    labels = Labels([0, 1, 2], [0, 0, 3, 3], [0, 0, 0], [1, 1, 1, 1])
    distances = np.float32([[0.1, 0.3, 0.2, 0.5], [0.6] * 4, [0.7] * 4])
    pairs = _counted(labels, distances)
    (point,) = calibrate(pairs, (0.1,), seed=0, resamples=200)["operating_points"]
    assert point["tar"] == 1 and np.isfinite(point["tar_ci95"]).all()
    for seed in range(5):
        found = calibrate(pairs, (0.1,), seed=seed, resamples=1)
        json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("missing", ["impostors", "matches"])
def test_nothing_is_claimed_without_impostors_or_matches(missing):
    labels = Labels([1, 1], [1, 1] if missing == "impostors" else [2, 2], [0, 0], [1, 1])
    distances = np.full((2, 2), 0.5, np.float32)
    calibration = calibrate(_counted(labels, distances), RATES, seed=0, resamples=20)
    assert calibration["pairs"][missing] == 0
    assert calibration["eer"] is None and calibration["operating_points"] == []
    with pytest.raises(UserError, match=r"calibrated for none"):
        suggested(calibration, 1e-3)


def test_a_threshold_is_suggested_for_a_rate():
    labels, distances = _people(0, gallery=300)
    calibration = calibrate(_counted(labels, distances), RATES, seed=0, resamples=20)
    assert suggested(calibration, 1e-2)["threshold"] > suggested(calibration, 1e-3)["threshold"]
    with pytest.raises(UserError, match=r"of 0\.5; calibrated for 0\.0001, 0\.001, 0\.01, 0\.1"):
        suggested(calibration, 0.5)
    with pytest.raises(UserError, match=r"8,\d\d\d pairs of different people do not tell"):
        suggested(calibration, 1e-4)


def test_histograms_are_the_right_way_round():
    labels, distances = _people(2, gallery=300)
    histogram = calibrate(_counted(labels, distances), RATES, seed=0, resamples=20)["histogram"]
    edges = np.array(histogram["edges"])
    assert len(edges) <= 65 and np.all(np.diff(edges) > 0)
    for name, kind in zip(("matches", "impostors"), _kinds(labels), strict=True):
        expected = np.histogram(distances[kind], edges)[0]
        np.testing.assert_array_equal(histogram[name], expected)
        assert sum(histogram[name]) == kind.sum()
    middles = (edges[1:] + edges[:-1]) / 2
    near, far = (np.average(middles, weights=histogram[n]) for n in ("matches", "impostors"))
    assert near == pytest.approx(0.7, abs=0.05) and far == pytest.approx(1.0, abs=0.05)


def test_cameras_in_pairs():
    labels, distances = _people(4, queries=90, gallery=300)
    pairs = _counted(labels, distances)
    calibration = calibrate(pairs, RATES, seed=0, resamples=20)
    match, impostor = _kinds(labels)
    seen = set()
    common = {p["far"]: p["threshold"] for p in calibration["operating_points"]}
    for entry in calibration["camera_pairs"]:
        cameras = entry["query_camera"], entry["gallery_camera"]
        seen.add(cameras)
        inside = (labels.query_cameras == cameras[0])[:, None] & (
            labels.gallery_cameras == cameras[1]
        )
        near, far = distances[match & inside], distances[impostor & inside]
        assert (entry["matches"], entry["impostors"]) == (len(near), len(far))
        assert entry["operating_points"], cameras
        for point in entry["operating_points"]:
            at_common = point["at_common_threshold"]
            # The histogram is read between its edges, where distances of two digits tie.
            expected = np.mean(far <= common[point["far"]] + WIDTH)
            assert at_common["measured_far"] <= expected + 1e-9
            assert at_common["measured_far"] >= np.mean(far <= common[point["far"]] - WIDTH)
            by_hand = _by_hand(near, far, point["far"])
            assert point["threshold"] >= by_hand[0]
            assert point["tar"] == pytest.approx(by_hand[1])
    assert seen == {(a, b) for a in range(3) for b in range(3) if a != b}


def test_cameras_and_people_beyond_the_limits(monkeypatch):
    monkeypatch.setattr(pairs_module, "MAX_CAMERAS", 2)
    monkeypatch.setattr(pairs_module, "MAX_GROUPS", 5)
    labels, distances = _people(4, queries=90, gallery=300)
    pairs = _counted(labels, distances)
    match, impostor = _kinds(labels)
    assert pairs.by_group.shape == (5, BINS) and pairs.by_group.sum() == impostor.sum()
    counts = np.bincount(labels.gallery_cameras[np.nonzero(match)[1]])
    assert pairs.gallery_cameras.tolist() == sorted(np.argsort(-counts)[:2])
    calibration = calibrate(pairs, RATES, seed=0, resamples=20)
    for entry in calibration["camera_pairs"]:
        chosen = (labels.query_cameras == entry["query_camera"])[:, None] & (
            labels.gallery_cameras == entry["gallery_camera"]
        )
        assert entry["matches"] == (match & chosen).sum()
        assert entry["impostors"] == (impostor & chosen).sum()


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_accelerators_hand_over_the_same_distances(distance):
    rng = np.random.default_rng(0)
    query, gallery = (
        row / np.linalg.norm(row, axis=1, keepdims=True)
        for row in (rng.normal(size=(size, 16)).astype(np.float32) for size in (37, 50))
    )
    query *= rng.uniform(0.5, 2, size=(37, 1)).astype(np.float32) if distance == "euclidean" else 1
    blocks = distance_blocks(query, gallery, make_mesh(jax.devices()[:8]), distance=distance)
    if distance == "cosine":
        expected = cosine_distances(query, gallery)
    else:
        expected = np.linalg.norm(query[:, None].astype(float) - gallery[None], axis=2)
        np.testing.assert_allclose(next(euclidean_blocks(query, gallery)), expected, rtol=1e-5)
    np.testing.assert_allclose(np.concatenate([*blocks]), expected, rtol=1e-5, atol=1e-6)
    # Ranked and scored by these distances.
    labels = [rng.integers(n, size=s) for n in (5, 2) for s in (37, 50)]
    found = evaluate_embeddings(
        query, gallery, Labels(*labels), make_mesh(jax.devices()[:8]), distance=distance
    )
    scores = evaluate_retrieval(expected, *labels)
    np.testing.assert_array_equal(found.average_precision, scores.average_precision)
