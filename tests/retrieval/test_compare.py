import dataclasses
from pathlib import Path

import numpy as np
import pytest

from pgfl_jax import cli
from pgfl_jax.config import EvalConfig
from pgfl_jax.errors import UserError
from pgfl_jax.retrieval.compare import compare
from pgfl_jax.retrieval.protocols import Images, Protocol
from pgfl_jax.retrieval.queries import encode_queries
from pgfl_jax.retrieval.query_results import query_results
from pgfl_jax.retrieval.ranking import rank_protocol
from pgfl_jax.retrieval.results import protocol_facts


def _results(noise, *, seed=0, queries=60, name="occluded", embedding="main"):
    """Of embeddings that are noisier or less, of the same people."""
    rng = np.random.default_rng(seed)
    splits, rows = {}, {}
    people = rng.normal(size=(15, 12))
    for side, count in (("query", queries), ("gallery", 150)):
        identities = np.arange(count) % 15
        vectors = people[identities] + noise * rng.normal(size=(count, 12))
        rows[side] = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        splits[side] = Images(
            np.array([f"{side}/{i}.jpg" for i in range(count)], object),
            identities,
            np.full(count, side == "gallery", np.int64),
            np.full(count, np.nan, np.float32),
        )
    splits["query"].identities[7:8] = 99  # skipped
    protocol = Protocol(name, "toy", "query", "gallery")
    ranked = rank_protocol(rows, protocol, splits, max_rank=20)
    origin = {"step": 7, "embedding": embedding, "parameters": "trained"}
    facts = protocol_facts(protocol, splits, EvalConfig(), rerank=False, **origin)
    return query_results(splits["query"], splits["gallery"], ranked.metrics, ranked.nearest, facts)


def _write(run, *results, suffix=""):
    (run / "results").mkdir(parents=True, exist_ok=True)
    for result in results:
        name = result.facts["protocol"]
        middle = "" if result.facts["embedding"] == "main" else f".{result.facts['embedding']}"
        path = run / "results" / f"{name}{middle}.queries{suffix}.parquet"
        path.write_bytes(encode_queries(result))
    return run


def test_differences_are_those_of_resampled_queries():
    first, other = _results(1.5), _results(1.2, seed=1)
    found = compare(first, other, seed=3, resamples=500)
    valid = np.flatnonzero(~np.isnan(first.average_precision))
    assert len(valid) == 59
    scores = {
        "mAP": [r.average_precision[valid] for r in (first, other)],
        "Rank-1": [r.first_match_rank[valid] == 1 for r in (first, other)],
        "Rank-5": [r.first_match_rank[valid] <= 5 for r in (first, other)],
    }
    for name, (ours, theirs) in scores.items():
        # The same queries are drawn for both runs.
        drawn = np.random.default_rng(3).integers(59, size=(500, 59))
        means = [theirs[rows].mean() - ours[rows].mean() for rows in drawn]
        low, high = np.quantile(means, [0.025, 0.975])
        expected = theirs.mean(), theirs.mean() - ours.mean(), low, high
        assert found[name] == pytest.approx(expected, abs=1e-12)
        assert found[name].verdict == ("better" if low > 0 else "undecided")
    assert found["mAP"].verdict == "better"
    back = compare(other, first, seed=3, resamples=500)["mAP"]
    assert back.verdict == "worse" and back.difference == -found["mAP"].difference


def test_a_run_is_no_better_than_itself():
    for difference in compare(_results(1.0), _results(1.0)).values():
        assert difference[1:] == (0, 0, 0) and difference.verdict == "undecided"


def test_one_query_and_a_pair_that_does_not_match():
    one = _results(1.0, queries=1)
    assert compare(one, one)["mAP"].score == one.average_precision[0]
    with pytest.raises(UserError, match=r"cannot be compared: they differ in the queries;"):
        compare(_results(1.0), one)
    first = _results(1.0)
    fingerprint = first.facts["fingerprint"] | {"junk_rule": "none", "sha256": ""}
    others = dataclasses.replace(first, facts={**first.facts, "fingerprint": fingerprint})
    with pytest.raises(UserError, match=r"they differ in the junk rule;"):
        compare(first, others)


def test_runs_are_compared_protocol_by_protocol(tmp_path, capsys):
    runs = [
        _write(tmp_path / "a", _results(1.5), _results(1.0, name="holistic", seed=4)),
        _write(tmp_path / "b", _results(1.2, seed=1), _results(1.3, embedding="parts")),
        _write(tmp_path / "c", _results(1.5)),
    ]
    assert cli.main(["compare", *map(str, runs)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "occluded (toy): 59 queries"
    assert [line.split()[0] for line in out[1:5]] == ["run", *map(str, runs)]
    difference = compare(_results(1.5), _results(1.2, seed=1))["mAP"]
    score, *parts = (100 * value for value in difference)
    assert f"{score:.1f}" in out[3]
    assert "{:+.1f} ({:+.1f} to {:+.1f}) better".format(*parts) in out[3]
    assert out[4].count("+0.0 (+0.0 to +0.0) undecided") == 3
    assert out[-1] == "not compared, since not all runs have it: holistic"


def test_runs_that_were_scored_by_other_options_are_named(tmp_path, capsys):
    first, same = _results(1.5), _results(1.2, seed=1)
    older = dict(first.facts)
    del older["flip"]  # written before the option existed
    for facts in (first.facts, older):
        base = dataclasses.replace(first, facts=facts)
        changed = {**same.facts, "flip": True, "distance": "euclidean"}
        other = dataclasses.replace(same, facts=changed)
        names = [str(tmp_path / name) for name in "abc"]
        for name, result in zip(names, (base, same, other), strict=True):
            _write(Path(name), result)
        assert cli.main(["compare", *names]) == 0
        notes = [line for line in capsys.readouterr().out.splitlines() if "note" in line]
        assert notes == [
            f"note: occluded: {names[2]} was scored with distance = euclidean (not cosine), "
            f"flip = True (not False), unlike {names[0]}"
        ]


def test_checkpoints_embeddings_and_files(tmp_path, capsys):
    first = _write(tmp_path / "a", _results(1.5, embedding="parts"), suffix=".best")
    other = _write(tmp_path / "b", _results(1.2, seed=1, embedding="parts"), suffix=".best")
    options = ["--checkpoint=best", "--embedding=parts"]
    assert cli.main(["compare", str(first), str(other), *options]) == 0
    expected = capsys.readouterr().out.splitlines()[3].split()[1:]
    files = [str(run / "results" / "occluded.parts.queries.best.parquet") for run in (first, other)]
    assert cli.main(["compare", *files]) == 0
    assert capsys.readouterr().out.splitlines()[3].split()[1:] == expected


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("empty", "empty/results: no *.queries.parquet; evaluate the run again (pgfl evaluate"),
        (
            "other",
            "occluded of {a} and {other}: cannot be compared: they differ in the queries and the ",
        ),
        ("else", "no protocol that all runs were scored on ({a}: occluded; {else}: holistic)"),
        ("a", "a run is given twice"),
        (None, "give two runs or more; the others are compared with the first"),
    ],
)
def test_what_cannot_be_compared_is_one_line(tmp_path, capsys, second, message):
    names = {name: str(tmp_path / name) for name in ("a", "empty", "other", "else")}
    _write(tmp_path / "a", _results(1.5))
    moved = _results(1.5)
    facts = {**moved.facts, "fingerprint": dict.fromkeys(moved.facts["fingerprint"], "other")}
    facts["fingerprint"] |= {
        name: moved.facts["fingerprint"][name] for name in ("camera_rule", "junk_rule")
    }
    _write(tmp_path / "other", dataclasses.replace(moved, facts=facts))
    _write(tmp_path / "else", _results(1.5, name="holistic"))
    runs = [names["a"], *([names[second]] if second else [])]
    assert cli.main(["compare", *runs]) == 1
    err = capsys.readouterr().err
    assert message.format(**names) in err and err.count("\n") == 1
