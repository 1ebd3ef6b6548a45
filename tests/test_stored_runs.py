"""A run that an earlier version stored is read, evaluated and resumed.

tests/golden/run_0cfe576 was written by commit 0cfe576: step 30 of the tiny configuration, with its
parameters rounded to two bits and the optimizer's moments set to 0, so that the file is small. Its
``results`` are that commit's evaluation of this checkpoint, its ``results_at_40`` that commit's
after it resumed to the end.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import pytest

from configs import stored
from input_pipeline.from_config import evaluation_data, training_data
from pgfl_jax.checkpoint import CheckpointError
from pgfl_jax.command_line import with_stored_config
from pgfl_jax.config import (
    Config,
    ConfigError,
    current_dataset_name,
    parse_config,
    stored_config,
)
from pgfl_jax.report.manifest import check_same_options, read_config, read_run
from pgfl_jax.report.summary import describe_run
from pgfl_jax.report.writers import write_json
from pgfl_jax.retrieval.evaluate import evaluate_checkpoint
from pgfl_jax.retrieval.protocols import EvaluationData
from pgfl_jax.train import train
from tests.runs import GOLDEN_OPTIONS, GOLDEN_RUN, results


@pytest.fixture
def run(tmp_path):
    return shutil.copytree(GOLDEN_RUN, tmp_path / "run")


def test_without_scores_there_is_no_best_checkpoint():
    config = read_config(GOLDEN_RUN)
    choice = dataclasses.replace(config.eval, checkpoint="best")
    nothing = EvaluationData(splits={}, protocols=[])
    with pytest.raises(CheckpointError, match="no checkpoint has been scored yet; take the newest"):
        evaluate_checkpoint(dataclasses.replace(config, eval=choice), GOLDEN_RUN, nothing)


def assert_results(found, folder):
    expected = {path.name: json.loads(path.read_text()) for path in sorted(folder.iterdir())}
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        # Another processor rounds differently, and neighbours in a ranking may swap.
        for score in ("mAP", "mINP"):
            assert found[name][score] == pytest.approx(values[score], abs=0.01)
        for key in ("step", "protocol", "num_query", "num_gallery", "num_valid_queries"):
            assert found[name][key] == values[key]


def test_it_is_evaluated_by_its_folder_alone(run, tiny_data_dir, capsys):
    """In this process; tests/test_train.py starts ``main.py --mode=evaluate --workdir=RUN``."""
    shutil.rmtree(run / "results")
    command = with_stored_config(["--mode=evaluate", f"--workdir={run}"], Path("configs/stored.py"))
    assert command[0] == f"--config=configs/stored.py:{run}"
    values = stored.get_config(str(run))
    values.data.data_dir = str(tiny_data_dir)
    config = parse_config(values)
    evaluate_checkpoint(config, run, evaluation_data(config))
    assert "evaluation at step 30" in capsys.readouterr().out
    assert_results(results(run), GOLDEN_RUN / "results")


def test_a_checkpoint_is_evaluated_by_its_number(run, tiny_config, capsys):
    config = tiny_config(**GOLDEN_OPTIONS, **{"eval.checkpoint": "30"})
    evaluate_checkpoint(config, run, evaluation_data(config))
    for path in (GOLDEN_RUN / "results").iterdir():
        values = json.loads(path.read_text())
        found = json.loads((run / "results" / f"{path.stem}.step30.json").read_text())
        assert found["mAP"] == pytest.approx(values["mAP"], abs=0.01) and found["step"] == 30
    shown = describe_run(run)
    assert shown.count("\nscores at step 30\n") == 1
    assert shown.count("\nscores at step 30, chosen by its number\n") == 1
    config = tiny_config(**GOLDEN_OPTIONS, **{"eval.checkpoint": "20"})
    with pytest.raises(CheckpointError, match=r"checkpoints: no checkpoint 20; there are \[30\]"):
        evaluate_checkpoint(config, run, evaluation_data(config))


def test_it_is_resumed_to_the_same_end(run, tiny_config):
    config = tiny_config(**GOLDEN_OPTIONS)
    state = train(
        config, run, training_data(config), evaluation_data(config), devices=jax.devices()[:1]
    )
    assert int(state.step) == 40
    assert_results(results(run), GOLDEN_RUN / "results_at_40")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines[-2]["step"] == lines[-1]["step"] == 40


def test_an_option_that_it_lacks_has_its_default():
    written = json.loads((GOLDEN_RUN / "config.json").read_text())
    defaults = Config().flat_options()
    assert stored_config(written).flat_options()["optim.learning_rate"] == 1.5e-3
    for name in written:
        older = {option: value for option, value in written.items() if option != name}
        try:
            found = stored_config(older).flat_options()
        except ConfigError:  # the default does not fit the other values
            continue
        assert found[name] == defaults[name]


def test_options_of_a_newer_version_are_refused(run):
    written = json.loads((run / "config.json").read_text())
    write_json(run / "config.json", written | {"loss.novelty": 1.0})
    with pytest.raises(ConfigError, match=r"config\.json: config\.loss\.novelty: unknown option"):
        read_config(run)


def test_only_options_that_leave_the_parameters_alone_may_change(run):
    written = json.loads((run / "config.json").read_text())
    free = {"model.remat": "blocks", "eval.batch_size": 8, "data.data_dir": "elsewhere"}
    check_same_options(run, stored_config(written | free))
    with pytest.raises(ConfigError, match=r"config\.loss\.margin = 0\.5: .* holds a run with 0\.3"):
        check_same_options(run, stored_config(written | {"loss.margin": 0.5}))


def test_a_data_set_of_ones_own_kept_its_content_when_it_was_renamed():
    assert current_dataset_name("manifest/shop") == "table/shop"
    assert current_dataset_name("market1501") == "market1501"
    assert stored_config({"data.dataset": "manifest/shop"}).data.dataset == "table/shop"


def test_a_run_that_counted_weak_poses_goes_on(run):
    config, stored_data = read_config(run), json.loads((run / "manifest.json").read_text())["data"]
    read_run(run, config, stored_data | {"pose_coverage": 0.5})
    with pytest.raises(ConfigError, match=r"config\.data\.pose\.files: .*\(poses_sha256 was"):
        read_run(run, config, stored_data | {"poses_sha256": "0" * 64})


@pytest.mark.parametrize("content", ["[1]", "{}", '{"data": 1}', '{"data": {}}'])
def test_a_damaged_manifest_is_one_line_when_the_run_is_used(content, run):
    (run / "manifest.json").write_text(content)
    with pytest.raises(ConfigError) as error:
        read_run(run, read_config(run))
    line = f"{run}/manifest.json: not the manifest of a run; put a copy back"
    assert str(error.value) == line
