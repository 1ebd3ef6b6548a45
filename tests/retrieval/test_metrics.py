import re

import jax.numpy as jnp
import numpy as np
import pytest

from pgfl_jax.retrieval import metrics
from pgfl_jax.retrieval.metrics import bootstrap_interval, evaluate_retrieval


def brute_force(distances, query_ids, gallery_ids, query_cameras, gallery_cameras, max_rank):
    """AP, INP and first match's rank per query (NaN: skipped), and the CMC; plain loops."""
    scores = []
    for q, row in enumerate(distances):
        order = sorted(range(len(row)), key=lambda g: (row[g], g))
        same = [gallery_ids[g] == query_ids[q] for g in order]
        junk = [gallery_cameras[g] == query_cameras[q] for g in order]
        hits = [s for s, j in zip(same, junk, strict=True) if not (s and j)]
        ranks = [rank for rank, hit in enumerate(hits, 1) if hit]
        if not ranks:
            scores.append((np.nan, np.nan, np.nan))
            continue
        precisions = [(k + 1) / rank for k, rank in enumerate(ranks)]
        scores.append((np.mean(precisions), len(ranks) / ranks[-1], ranks[0]))
    ap, inp, first = np.array(scores).T
    valid = first[~np.isnan(first)]
    cmc = [np.mean(valid <= r) for r in range(1, max_rank + 1)]
    return ap, np.nanmean(inp), first, cmc


def check(distances, query_ids, gallery_ids, query_cameras, gallery_cameras, max_rank=10):
    inputs = distances, query_ids, gallery_ids, query_cameras, gallery_cameras
    result = evaluate_retrieval(*inputs, max_rank=max_rank)
    ap, mean_inp, first, cmc = brute_force(*inputs, max_rank)
    np.testing.assert_allclose(result.average_precision, ap, rtol=1e-13)
    np.testing.assert_array_equal(result.first_match_rank, first)
    np.testing.assert_allclose(result.cmc, cmc, rtol=1e-13)
    assert result.mean_ap == pytest.approx(np.nanmean(ap), rel=1e-13)
    assert result.mean_inp == pytest.approx(mean_inp, rel=1e-13)
    assert result.num_valid_queries == np.sum(~np.isnan(first))
    return result


def problem(seed, queries, gallery, identities, cameras):
    rng = np.random.default_rng(seed)
    labels = [rng.integers(n, size=s) for n in (identities, cameras) for s in (queries, gallery)]
    return rng.random((queries, gallery)), labels


@pytest.fixture(params=[2**21, 64], ids=["one block", "many blocks"])
def blocks(request, monkeypatch):
    monkeypatch.setattr(metrics, "BLOCK_ELEMENTS", request.param)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_random(blocks, dtype):
    distances, labels = problem(0, 30, 100, 12, 3)
    check(distances.astype(dtype), *labels)


@pytest.mark.parametrize("levels", [1, 2, 5])
def test_ties(blocks, levels):
    distances, labels = problem(1, 30, 100, 8, 3)
    whole = np.floor(distances * levels)
    check(whole.astype(np.float32), *labels)
    check(whole.astype(np.int64), *labels)


def test_hundreds_of_problems(monkeypatch):
    rng = np.random.default_rng(6)
    for seed in range(300):
        queries, gallery = int(rng.choice([1, 7])), int(rng.choice([1, 2, 40]))
        distances, labels = problem(seed, queries, gallery, rng.integers(1, 6), rng.integers(1, 4))
        labels[0][0], labels[1][0] = 0, 0
        labels[2][0], labels[3][0] = 0, 1  # a match at least
        if seed % 2:
            distances = np.round(distances, 1).astype(np.float32)
        # Matches are counted one by one where they are few, in a sorted row where they are many.
        monkeypatch.setattr(metrics, "SORT_FROM", (1, 5, 1000)[seed % 3])
        check(distances, *labels)


def test_junk_heavy_with_skipped_queries(blocks):
    distances, labels = problem(2, 40, 60, 30, 1)
    labels[3][:20] = 1  # a third of the gallery is under another camera, the rest is junk
    result = check(np.round(distances, 1), *labels)
    assert 0 < result.num_valid_queries < 40


@pytest.mark.parametrize("seed", range(20))
def test_tiny_galleries(seed):
    distances, labels = problem(seed, 6, 1 + seed % 4, 2, 2)
    try:
        check(distances, *labels, max_rank=50)
    except ValueError as error:
        assert "none of the 6 queries" in str(error)


def test_float64_is_not_rounded_to_ties():
    distances = 1 + np.array([[3.0, 2.0, 1.0, 0.0]]) * 2.0**-50
    assert len(set(distances.astype(np.float32)[0])) == 1
    result = check(distances, [5], [5, 6, 6, 6], [0], [1, 1, 1, 1])
    assert result.first_match_rank == [4]


def test_negative_and_signed_zero_distances():
    check(np.array([[0.0, -0.0, -1.0, 0.0]]), [1], [2, 1, 2, 1], [0], [1, 1, 1, 1])


def test_by_hand():
    # Ranking without junk: hit, miss, hit, miss. The nearest item of all is junk.
    result = evaluate_retrieval(
        np.array([[0.0, 0.1, 0.2, 0.3, 0.4]]),
        [7],
        [7, 7, 1, 7, 2],
        [0],
        [0, 1, 1, 2, 0],
        max_rank=3,
    )
    assert result.average_precision.tolist() == [(1 / 1 + 2 / 3) / 2]
    assert result.mean_inp == 2 / 3
    assert result.cmc.tolist() == [1, 1, 1]
    assert result.first_match_rank.tolist() == [1]


def test_a_distractor_under_the_query_camera_stays_in_the_ranking():
    result = evaluate_retrieval(np.array([[0.1, 0.2]]), [7], [1, 7], [0], [0, 1])
    assert result.first_match_rank.tolist() == [2]


def test_ties_rank_by_gallery_index():
    result = evaluate_retrieval(np.zeros((2, 3)), [1, 2], [1, 2, 2], [0, 0], [1, 1, 1], max_rank=2)
    assert result.first_match_rank.tolist() == [1, 2]
    assert result.average_precision.tolist() == [1, (1 / 2 + 2 / 3) / 2]
    assert result.cmc.tolist() == [0.5, 1]


def test_the_cmc_carries_forward_past_a_small_gallery():
    result = evaluate_retrieval(np.array([[0.2, 0.1]]), [1], [1, 2], [0], [1, 1])
    assert result.cmc.shape == (50,)
    assert result.cmc[0] == 0 and np.all(result.cmc[1:] == 1)


def test_a_first_match_beyond_max_rank():
    result = evaluate_retrieval(np.array([[0.2, 0.1]]), [1], [1, 2], [0], [1, 1], max_rank=1)
    assert result.cmc.tolist() == [0]
    assert result.mean_ap == 0.5


def test_jax_arrays_and_string_labels():
    distances, labels = problem(3, 10, 20, 4, 2)
    names = [np.array([f"{x:03d}" for x in label]) for label in labels]
    wanted = evaluate_retrieval(distances.astype(np.float32), *labels)
    for inputs in (map(jnp.asarray, labels), names):
        found = evaluate_retrieval(jnp.asarray(distances, jnp.float32), *inputs)
        assert found.mean_ap == wanted.mean_ap
    rounded = jnp.asarray(distances, jnp.bfloat16)
    check(np.asarray(rounded), *labels)


def test_the_distances_are_left_alone():
    distances, labels = problem(4, 5, 10, 2, 1)
    labels[3][:5] = 1
    before = distances.copy()
    evaluate_retrieval(distances, *labels)
    np.testing.assert_array_equal(distances, before)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_distance_that_is_not_finite_is_named(blocks, value):
    distances, labels = problem(5, 30, 40, 5, 2)
    distances[[17, 29], [8, 3]] = value
    with pytest.raises(ValueError, match=f"query 17 to gallery item 8 is {value}"):
        evaluate_retrieval(distances, *labels)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3), "query_ids have shape"),
        ((1, 4), "gallery_ids have shape"),
        ((3,), "distances have"),
    ],
)
def test_shapes_that_do_not_fit(shape, message):
    with pytest.raises(ValueError, match=message):
        evaluate_retrieval(np.zeros(shape), [1], [1, 2, 3], [0], [1, 1, 1])


def test_cameras_and_max_rank_are_checked():
    with pytest.raises(ValueError, match="gallery_cameras have shape"):
        evaluate_retrieval(np.zeros((1, 2)), [1], [1, 2], [0], [1])
    with pytest.raises(ValueError, match="max_rank is 0"):
        evaluate_retrieval(np.zeros((1, 2)), [1], [1, 2], [0], [1, 1], max_rank=0)


STRINGS, NUMBERS = np.array(["0", "1"]), np.array([0, 1])


@pytest.mark.parametrize(
    ("queries", "gallery", "kinds"),
    [
        (STRINGS, NUMBERS, ("strings", "numbers")),
        (NUMBERS, STRINGS.astype(object), ("numbers", "strings")),
        (STRINGS.astype(bytes), STRINGS, ("bytes", "strings")),
    ],
)
def test_labels_of_different_kinds_are_refused(queries, gallery, kinds):
    inputs = {name: NUMBERS for name in ("query_ids", "gallery_ids")}
    inputs |= {"query_cameras": NUMBERS, "gallery_cameras": NUMBERS[::-1]}
    for name in ("ids", "cameras"):
        mixed = inputs | {f"query_{name}": queries, f"gallery_{name}": gallery}
        with pytest.raises(ValueError) as error:
            evaluate_retrieval(np.eye(2), **mixed)
        assert str(error.value) == (
            f"query_{name} are {kinds[0]} and gallery_{name} are {kinds[1]}; give labels of one "
            "kind"
        )


def test_labels_that_cannot_be_compared_exactly_are_refused():
    distances = [[0.1, 0.2, 0.3], [0.3, 0.1, 0.2]]
    cameras = [0, 0], [1, 1, 1]
    with pytest.raises(ValueError, match=r"^query_ids hold NaN; leave out what has no label$"):
        evaluate_retrieval(distances, [np.nan, 1], [np.nan, 1, 2], *cameras)
    with pytest.raises(ValueError, match=r"^gallery_cameras hold NaN"):
        evaluate_retrieval(distances, [0, 1], [0, 1, 2], [0.0, 0.0], [1, np.nan, 1])
    # As floats, 2^60 and 2^60 + 1 would be one person.
    query = np.array([2**60 + 1, 2**60 + 2], np.uint64)
    gallery = np.array([2**60, 2**60 + 2, 2**60 + 3], np.int64)
    message = r"^query_ids are uint64 and gallery_ids are int64; convert them to one type$"
    with pytest.raises(ValueError, match=message):
        evaluate_retrieval(distances, query, gallery, *cameras)
    found = evaluate_retrieval(distances, query.astype(np.int64), gallery, *cameras)
    assert found.num_valid_queries == 1
    # Dates as identities: in float32, 20260001 is 20260000, another person.
    query, gallery = np.float32([20260001, 7]), np.float32([20260000, 20260002, 7])
    message = "query_ids are float32 up to 20260000, but from 16777216 on this type holds two"
    with pytest.raises(ValueError, match=f"^{message} neighbouring numbers as one"):
        evaluate_retrieval(distances, query, gallery, *cameras)
    with pytest.raises(ValueError, match=r"^gallery_cameras are float16 up to 2050, but fro"):
        evaluate_retrieval(distances, [1, 2], [1, 2, 3], [0, 0], np.float16([1, 2050, 3]))
    as_float64 = np.array([20260001, 7.0]), np.array([20260000, 20260002, 7.0])
    assert evaluate_retrieval(distances, *as_float64, *cameras).num_valid_queries == 1


def test_integers_that_floats_do_not_hold_are_refused():
    distances = np.array([[2**60 + 1, 2**60, 2**60 + 2]])  # the second is the nearest
    with pytest.raises(ValueError, match=r"^distances are int64 beyond 2\*\*53, where float64"):
        evaluate_retrieval(distances, [1], [0, 1, 2], [0], [1, 1, 1])
    with pytest.raises(ValueError, match=r"^distances are int64 beyond"):
        evaluate_retrieval(-distances, [1], [0, 1, 2], [0], [1, 1, 1])
    found = evaluate_retrieval(distances - 2**60, [1], [0, 1, 2], [0], [1, 1, 1])
    assert found.mean_ap == 1.0


@pytest.mark.parametrize(
    "place, value, message",
    [
        (0, np.eye(2) + 0j, "distances are complex128; expected an array of real numbers"),
        (0, [["0.1", "0.2"]] * 2, "distances are <U3; expected an array of real numbers"),
        (0, np.array(None), "distances are object; expected an array of real numbers"),
        (0, np.ma.masked_array(np.eye(2), np.eye(2)), "distances hold masked values; leave"),
        (1, np.array(None), "query_ids hold None or NaN; leave out what has no label"),
        (2, ["a", None], "gallery_ids hold None or NaN; leave out what has no label"),
        (3, np.array(["a", np.nan], object), "query_cameras hold None or NaN; leave out"),
        (4, np.array([1, "a"], object), "gallery_cameras are of different kinds ("),
        (2, np.ma.masked_array([1, 2], [True, False]), "gallery_ids hold masked values; leave"),
        (2, np.array(7), "gallery_ids have shape ()"),
    ],
)
def test_what_is_no_distance_or_label_is_one_value_error(place, value, message):
    inputs = [np.eye(2), [1, 2], [1, 2], [0, 0], [1, 1]]
    inputs[place] = value
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        evaluate_retrieval(*inputs)


def test_an_array_that_could_have_masked_values_has_its_score():
    inputs = np.eye(2)[::-1], [1, 2], [1, 2], [0, 0], [1, 1]
    assert evaluate_retrieval(*map(np.ma.masked_array, inputs)).mean_ap == 1.0


def test_strings_and_mixed_number_types_are_labels():
    labels = [STRINGS, STRINGS.astype(object), NUMBERS, NUMBERS.astype(object), NUMBERS * 1.0]
    for queries, gallery in ((0, 0), (0, 1), (2, 3), (2, 4)):
        ids, others = labels[queries], labels[gallery]
        result = evaluate_retrieval(np.eye(2), ids, others, ids, others[::-1])
        assert result.mean_ap == 0.5


@pytest.mark.parametrize("queries, gallery", [(2, 3), (2, 0), (0, 3)])
def test_no_query_with_a_match(queries, gallery):
    with pytest.raises(ValueError, match=f"none of the {queries} queries has a match"):
        evaluate_retrieval(
            np.zeros((queries, gallery)),
            np.ones(queries, int),
            np.ones(gallery, int),
            np.zeros(queries, int),
            np.zeros(gallery, int),
        )


def test_bootstrap_nears_the_normal_approximation():
    values = np.random.default_rng(0).random(2000)
    low, high = bootstrap_interval(values, seed=1, resamples=4000)
    half = 1.96 * values.std() / np.sqrt(2000)
    assert low == pytest.approx(values.mean() - half, abs=half / 10)
    assert high == pytest.approx(values.mean() + half, abs=half / 10)
    narrow = bootstrap_interval(values, seed=1, resamples=4000, level=0.5)
    assert low < narrow[0] < values.mean() < narrow[1] < high


def test_bootstrap_drops_nan_and_repeats_itself():
    values = np.array([0.1, np.nan, 0.5, 0.9])
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values[[0, 2, 3]], seed=3)
    assert bootstrap_interval(np.full(5, 0.25), seed=0) == (0.25, 0.25)


def test_bootstrap_in_blocks(monkeypatch):
    values = np.random.default_rng(0).random(100)
    monkeypatch.setattr(metrics, "BLOCK_ELEMENTS", 150)
    low, high = bootstrap_interval(values, seed=0)
    half = 1.96 * values.std() / 10
    assert high - low == pytest.approx(2 * half, rel=0.15)


@pytest.mark.parametrize(
    "values, options", [([np.nan], {}), ([1.0], {"level": 1.0}), ([1.0], {"seed": -1})]
)
def test_bootstrap_refuses_what_it_cannot_do(values, options):
    with pytest.raises(ValueError, match="a bootstrap interval needs"):
        bootstrap_interval(values, **{"seed": 0} | options)
