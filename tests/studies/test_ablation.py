"""The study's runner: what it trains, in which order, when it stops, and its table."""

import dataclasses
import json
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from configs import study
from pgfl_jax.config import parse_config
from pgfl_jax.errors import UserError
from studies.ablation import run as runner
from studies.ablation.cells import CELLS, GRIDS
from studies.ablation.collect import collect, finished, paired_difference, spread, table


@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_is_a_configuration(cell):
    config = parse_config(study.get_config(cell))
    options = config.flat_options()
    assert all(options[name] == value for name, value in CELLS[cell].changes.items())


def test_grids_name_cells_and_an_unknown_one_is_refused():
    assert all(set(grid.cells) <= set(CELLS) for grid in GRIDS.values())
    with pytest.raises(ValueError, match=r"no cell 'lots'; there are full, paper, "):
        study.get_config("lots")


def _write_run(workdir, cell, seed, value, **changes):
    """The parts of a finished run of 40 steps that the study reads, with scores ``value``."""
    (workdir / "results").mkdir(parents=True, exist_ok=True)
    config = parse_config(study.get_config(cell))
    options = {**config.flat_options(), "seed": seed}
    manifest = {"commit": "abc", "data": {}, "num_identities": 16, "num_images": 128}
    (workdir / "config.json").write_text(json.dumps(options))
    (workdir / "manifest.json").write_text(json.dumps(manifest))
    for protocol, base in (("occluded", 0.0), ("holistic", 0.25)):
        result = {
            "dataset": "synthetic_occluded_reid/tiny/1.0.0",
            "protocol": f"some-set.{protocol}",
            "step": 40,
            "embedding": "main",
            "parameters": "trained",
            "distance": "cosine",
            "flip": False,
            "rerank": False,
            "mAP": base + value,
            "cmc": {"1": base + value + 0.0625, "5": 1.0},
            "ci95": {"mAP": [0.0, 1.0]},
            "mINP": 0.5,
            "num_valid_queries": 16,
            **changes,
        }
        name = protocol + "".join(f".{change}" for change in changes.values())
        (workdir / "results" / f"{name.replace('/', '-')}.json").write_text(json.dumps(result))


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Replaces training: writes what a run leaves behind, and lists what was trained.

    A run takes 2 seconds of a clock that only it moves.
    """
    order = []
    monkeypatch.setattr(runner.time, "monotonic", lambda: 2.0 * len(order))

    def main(command, stdout, stderr):
        cell = command[2].rpartition(":")[2]
        seed = int(command[4].rpartition("=")[2])
        order.append((cell, seed))
        value = 0.25 + (0.125 + 0.0625 * seed) * (cell == "tiny")
        _write_run(Path(command[3].removeprefix("--workdir=")), cell, seed, value)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(runner.subprocess, "run", main)
    return order


def _run(tmp_path, seeds, hours=None):
    runner.run_grid("smoke", seeds, tmp_path, tmp_path / "data", hours=hours, jobs=1)


def test_every_cell_gets_a_seed_before_any_gets_the_next(tmp_path, trained, capsys):
    _run(tmp_path, 2)
    expected = [("tiny_alone", 0), ("tiny", 0), ("tiny_alone", 1), ("tiny", 1)]
    assert trained == expected
    assert "[4/4] tiny seed 1 | about 0:00 left" in capsys.readouterr().out
    _run(tmp_path, 3)  # goes on
    assert trained == [*expected, ("tiny_alone", 2), ("tiny", 2)]


def test_a_run_that_would_end_too_late_does_not_start(tmp_path, trained, capsys):
    _run(tmp_path, 2, hours=5.0 / 3600)
    assert trained == [("tiny_alone", 0), ("tiny", 0)]
    assert "out of time: 2 runs left; the same command goes on" in capsys.readouterr().out
    _run(tmp_path, 2, hours=1.0 / 3600)  # it knows what the finished runs took
    assert len(trained) == 2
    jobs = [("b", 0), ("a", 0)]
    assert runner.next_job(jobs, {"a": [5.0], "b": [9.0, 20.0]}, 19.0) == ("a", 0)
    assert runner.next_job(jobs, {"b": [20.0]}, 20.0) == ("b", 0)
    assert runner.next_job(jobs, {"b": [20.0]}, 19.0) is None
    assert runner.next_job(jobs, {}, 0.0) == ("b", 0)


def test_a_short_run_makes_room_while_a_long_one_goes_on(tmp_path, monkeypatch):
    third = threading.Event()
    started = []

    def train(job, *_):
        started.append(job)
        if job == ("tiny", 1):
            third.set()
        if job == ("tiny_alone", 0):
            assert third.wait(30.0)
        return 1.0

    monkeypatch.setattr(runner, "train", train)
    runner.run_grid("smoke", 2, tmp_path, tmp_path / "data", hours=None, jobs=2)
    assert sorted(started[:2]) == [("tiny", 0), ("tiny_alone", 0)]
    assert started[2:] == [("tiny_alone", 1), ("tiny", 1)]


def test_what_was_scored_on_another_set_is_trained_again(tmp_path, trained, monkeypatch):
    _run(tmp_path, 1)
    other = dataclasses.replace(GRIDS["smoke"], datasets=("synthetic_occluded_reid/demo",))
    monkeypatch.setattr(runner, "GRIDS", {"smoke": other})
    with pytest.raises(UserError, match=r"smoke.json: holds scores of tiny_alone, seed 0, whose"):
        _run(tmp_path, 1)
    (tmp_path / "smoke.json").unlink()
    with pytest.raises(UserError, match="stopped before its end"):  # it is scored on the tiny set
        _run(tmp_path, 1)
    assert trained == [("tiny_alone", 0), ("tiny", 0), ("tiny_alone", 0)]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["demo", "tiny"]


def test_the_table_by_hand(tmp_path, trained):
    _run(tmp_path, 3)
    runs = json.loads((tmp_path / "smoke.json").read_text())
    assert runs == collect(tmp_path / "tiny", GRIDS["smoke"].cells)
    assert [(run["cell"], run["seed"]) for run in runs[:2]] == [
        ("tiny_alone", 0),
        ("tiny_alone", 1),
    ]
    assert runs[-1]["commit"] == "abc" and runs[-1]["seconds"] == 2.0
    # Differences of 0.125, 0.1875 and 0.25.
    half = scipy.stats.t.ppf(0.975, 2) * np.std([12.5, 18.75, 25.0], ddof=1) / np.sqrt(3)
    difference = f"+18.8 ({18.75 - half:+.1f} to {18.75 + half:+.1f})"
    text = (tmp_path / "smoke.md").read_text()
    assert text == table(runs, GRIDS["smoke"].cells)
    assert text.splitlines()[2:] == [
        "| tiny_alone | 3 | 25.0 ± 0.0 | 31.2 ± 0.0 | 50.0 ± 0.0 | 56.2 ± 0.0 |  |",
        f"| tiny | 3 | 43.8 ± 6.2 | 50.0 ± 6.2 | 68.8 ± 6.2 | 75.0 ± 6.2 | {difference} |",
    ]
    assert spread([0.5]) == "50.0" and paired_difference({0: 0.5}, {1: 0.5}) == ""
    assert paired_difference({0: 0.5}, {0: 0.25}) == "+25.0"


def test_a_failed_run_ends_the_study_and_names_its_reason_and_log(tmp_path, monkeypatch):
    monkeypatch.setattr(runner.sys, "executable", "/bin/cat")
    message = r"tiny_alone, seed 0: ended with status 1: Try '.*' .* \(see .*seed0.log\)"
    with pytest.raises(UserError, match=message):
        _run(tmp_path, 1)
    assert not (tmp_path / "tiny" / "tiny_alone" / "seed0.json").exists()


def test_a_training_that_was_asked_to_stop_has_not_ended(tmp_path):
    grid, workdir = GRIDS["smoke"], tmp_path / "seed0"
    _write_run(workdir, "tiny", 0, 0.5, step=13)
    assert finished(workdir, grid) is None


def test_later_evaluations_of_a_run_change_no_score(tmp_path, trained):
    workdir, grid = tmp_path / "tiny" / "tiny" / "seed0", GRIDS["smoke"]
    _run(tmp_path, 1)
    runs = json.loads((tmp_path / "smoke.json").read_text())
    others = {"step": 0}, {"dataset": "other/1.0.0"}, {"rerank": True}, {"flip": True}
    for changes in (*others, {"distance": "euclidean"}):
        _write_run(workdir, "tiny", 0, 0.75, **changes)
    scores = finished(workdir, grid)["scores"]
    assert scores == runs[1]["scores"] and scores["occluded"]["main"]["mAP"] == 0.375
    _write_run(workdir, "tiny", 0, 0.75)
    _run(tmp_path, 1)
    assert json.loads((tmp_path / "smoke.json").read_text()) == runs


def test_a_run_of_another_definition_of_its_cell_is_refused(tmp_path, trained, monkeypatch):
    _run(tmp_path, 1)
    changed = dataclasses.replace(CELLS["tiny"], changes={"optim.learning_rate": 0.5})
    monkeypatch.setattr(study, "CELLS", {**CELLS, "tiny": changed})
    with pytest.raises(
        UserError, match=r"seed0: trained with config.optim.learning_rate = .* 0.5;"
    ):
        _run(tmp_path, 1)


@pytest.mark.parametrize("content", ["", "{}", '{"options": {"seed": "x"}}'])
def test_a_damaged_marker_is_named(content, tmp_path, trained):
    _run(tmp_path, 1)
    (tmp_path / "tiny" / "tiny" / "seed0.json").write_text(content)
    with pytest.raises(UserError, match=r"tiny/seed0.json: damaged, or not of a finished run"):
        _run(tmp_path, 1)


@pytest.mark.parametrize("content", ['{"images": []}', "poses", "[1]"])
def test_a_file_that_is_no_table_of_the_study_is_not_overwritten(content, tmp_path, trained):
    (tmp_path / "smoke.json").write_text(content)
    with pytest.raises(UserError, match=r"smoke.json: the study would overwrite it"):
        _run(tmp_path, 1)
    assert trained == [] and (tmp_path / "smoke.json").read_text() == content
