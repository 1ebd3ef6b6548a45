import json

import jax.numpy as jnp
import numpy as np
import pytest

from pgfl_jax.experiment import Experiment
from pgfl_jax.report.step_log import NonFiniteLossError, StepLog

FILENAMES = np.array(["a.jpg", "b.jpg", "c.jpg"])


@pytest.fixture
def experiment(tiny_config):
    """A line every 4 steps."""
    config = tiny_config(**{"train.log_every": 4})
    return Experiment.create(config, num_identities=16, num_images=128)


def _add(log, steps):
    for step in steps:
        log.add(step, {"total": jnp.float32(step) ** 2}, np.array([0, 2]))


def _lines(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["total"]) for line in lines]


def test_a_line_is_the_mean_since_the_line_before(experiment, tmp_path, capsys):
    with StepLog(tmp_path, None, [], experiment, FILENAMES) as log:
        _add(log, range(1, 7))
        assert log.pending_metrics() == [{"total": 25.0}, {"total": 36.0}]
        log.flush()
        assert log.pending_metrics() == []
    assert _lines(tmp_path) == [(4, (1 + 4 + 9 + 16) / 4), (6, (25 + 36) / 2)]
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("step  4/40 | total 7.5 | ") and len(out) == 2


def test_a_resumed_run_writes_the_line_of_the_steps_before(experiment, tmp_path):
    with StepLog(tmp_path, None, [], experiment, FILENAMES) as log:
        _add(log, range(1, 7))
        pending = log.pending_metrics()
    with StepLog(tmp_path, 6, pending, experiment, FILENAMES) as log:
        _add(log, range(7, 9))
    assert _lines(tmp_path) == [(4, 7.5), (8, (25 + 36 + 49 + 64) / 4)]


def test_a_loss_that_is_not_finite_names_step_term_and_images(experiment, tmp_path):
    with StepLog(tmp_path, None, [], experiment, FILENAMES) as log:
        _add(log, [1])
        log.add(2, {"total": jnp.float32(np.nan)}, np.array([2, 0, 2]))
        with pytest.raises(NonFiniteLossError, match=r"^step 2: total not .*: a\.jpg, c\.jpg$"):
            log.pending_metrics()


def test_the_score_of_the_first_protocol_selects_the_best_step(experiment, tmp_path):
    results = [
        {"protocol": name, "embedding": "main", "parameters": "trained", "rerank": False, "step": 3,
         "mAP": score, "cmc": {"1": 0.5}}
        for name, score in (("occluded", 0.25), ("holistic", 0.75))
    ]  # fmt: skip
    with StepLog(tmp_path, None, [], experiment, FILENAMES) as log:
        assert log.evaluation(results) == 0.25
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
        "step": 3, "occluded/main/mAP": 0.25, "occluded/main/rank1": 0.5,
        "holistic/main/mAP": 0.75, "holistic/main/rank1": 0.5,
    }  # fmt: skip
