"""The real entry point on the tiny set: what it writes, what it refuses, what a NaN does."""

import dataclasses
import hashlib
import itertools
import json
import os
import re
import shutil
import time

import jax
import numpy as np
import pytest
from absl.testing import flagsaver

import main
import pgfl_jax
from input_pipeline import builders
from input_pipeline.catalog import read_catalog
from input_pipeline.errors import DataError
from input_pipeline.from_config import evaluation_data, training_data
from pgfl_jax.checkpoint import open_checkpoints
from pgfl_jax.command_line import parse_flags
from pgfl_jax.config import Config, ConfigError
from pgfl_jax.distributed.sharding import make_mesh, shard_batch
from pgfl_jax.errors import UserError
from pgfl_jax.experiment import Experiment, read_pretrained
from pgfl_jax.network_input import network_input
from pgfl_jax.pretrained import PretrainedError, save_state_dict, to_state_dict
from pgfl_jax.report.step_log import NonFiniteLossError
from pgfl_jax.report.training_images import write_training_images
from pgfl_jax.retrieval.evaluate import evaluate_checkpoint
from pgfl_jax.retrieval.protocols import EvaluationError
from pgfl_jax.train import begin, train
from pgfl_jax.train_step import make_train_step
from tests.runs import NETWORKS, finish, history, launch, one_block, start

STEPS = 40
ONE = jax.devices()[:1]  # eight virtual devices on two cores would only be slow


def _data(config):
    return training_data(config), evaluation_data(config)


@pytest.fixture(scope="module")
def undisturbed(tiny_data_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "undisturbed"
    code, out, err = finish(start(tiny_data_dir, workdir))
    assert code == 0, err
    return workdir, out


def _run(config):
    return Experiment.create(config, num_identities=16, num_images=128)


def test_a_run_leaves_what_the_design_promises(undisturbed):
    workdir, out = undisturbed
    assert {path.name for path in workdir.iterdir()} == {
        ".lock", "config.json", "manifest.json", "checkpoints", "metrics", "metrics.jsonl",
        "results", "training_images.npy",
    }  # fmt: skip
    assert next((workdir / "metrics").glob("events.out.tfevents.*")).stat().st_size > 1000
    manifest = json.loads((workdir / "manifest.json").read_text())
    assert (manifest["num_identities"], manifest["num_images"]) == (16, 128)
    assert manifest["data"]["pose_coverage"] == 1.0
    assert manifest["XLA_FLAGS"] == os.environ.get("XLA_FLAGS", "")
    assert manifest["jax_default_matmul_precision"] is None
    for name in ("occluded", "holistic"):
        result = json.loads((workdir / "results" / f"{name}.json").read_text())
        assert (result["protocol"], result["step"], result["num_query"]) == (name, STEPS, 16)
        assert 0 < result["mAP"] < 1
    lines = history(workdir)
    logged = [line["step"] for line in lines if "total" in line]
    evaluated = [line["step"] for line in lines if "occluded/main/mAP" in line]
    assert logged == list(range(10, STEPS + 1, 10))
    assert evaluated == [0, 20, 40]
    assert "step 40/40 | total " in out and "images/s | ETA 0:00" in out


def _energy_on_parts(experiment, state, evaluation):
    """Mean share of each visible part's channel-group energy on the cells of the part."""
    shares = []
    for batch in evaluation.splits["synthetic_occluded_reid/tiny/query_holistic"].batches():
        features = experiment.model.apply(
            {"params": state.params, "batch_stats": state.batch_stats},
            network_input(batch, experiment.config.data),
            train=False,
        ).features
        energy = np.square(np.asarray(features, np.float64)).reshape(*features.shape[:3], 8, -1)
        energy = energy.sum(-1)
        on_part = (energy * (batch["part_maps"] > 0.5)).sum((1, 2)) / energy.sum((1, 2))
        shares.append(on_part[batch["visibility"] > 0.5])
    return np.concatenate(shares).mean()


def test_the_pose_terms_move_the_channel_groups_onto_their_parts(tiny_config):
    moved = {}
    for weight in (1.0, 0.0):
        config = tiny_config(
            **{
                "loss.semantic": weight,
                "loss.alignment": weight,
                "train.epochs": 12.5,
                "eval.embeddings": ("main", "parts"),  # so that the evaluated images have maps
            }
        )
        training, evaluation = _data(config)
        experiment, mesh = _run(config), make_mesh(ONE)
        state, train_step = experiment.init_state(mesh), make_train_step(experiment, mesh)
        before = _energy_on_parts(experiment, state, evaluation)
        for batch in itertools.islice(training.batches(0), 40):
            inputs = {name: value for name, value in batch.items() if name != "indices"}
            state, _ = train_step(state, shard_batch(inputs, mesh))
        moved[weight] = _energy_on_parts(experiment, state, evaluation) / before
    print(moved)
    # Images of people who were not trained on: what moved is where the groups look.
    assert moved[1.0] > 1.2
    # 1.49; distillation pulls all groups alike, and its default weight has doubled.
    assert moved[1.0] > 1.4 * moved[0.0]


def test_evaluate_mode_needs_the_folder_alone_and_repeats_the_scores(undisturbed):
    workdir = undisturbed[0]
    path = workdir / "results" / "occluded.json"
    before = json.loads(path.read_text())
    path.unlink()
    code, out, err = finish(launch("main.py", "--mode=evaluate", f"--workdir={workdir}"))
    assert code == 0, err
    after = json.loads(path.read_text())
    before.pop("seconds"), after.pop("seconds")
    assert after == before
    assert f"{100 * after['mAP']:.1f}" in out


def test_an_untrained_network_is_scored_without_a_run(undisturbed, tiny_config, tmp_path):
    workdir, _ = undisturbed
    before = history(workdir)[0]  # the evaluation before step 1, in another process
    config = tiny_config(**{"eval.checkpoint": "untrained"})
    results = evaluate_checkpoint(config, tmp_path, evaluation_data(config))
    for result in results:
        assert result["step"] == 0
        assert result["mAP"] == pytest.approx(before[f"{result['protocol']}/main/mAP"], abs=1e-6)
    written = {path.name for path in (tmp_path / "results").iterdir()}
    names = "untrained.json", "calibration.untrained.json", "queries.untrained.parquet"
    assert written == {f"{protocol}.{n}" for protocol in ("occluded", "holistic") for n in names}


def test_a_users_mistake_is_one_line(tiny_data_dir, tmp_path):
    code, _, err = finish(start(tiny_data_dir, tmp_path, "--config.data.images_per_identity=1"))
    assert code == 1 and err.count("\n") == 1
    assert err.startswith("error: config.data.images_per_identity = 1: the triplet loss needs")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--config.optim.learning_rat=0.1"], "learning_rat"),
        (["--config.optim.learning_rate=fast"], "learning_rate"),
        (["--config.data.dataset=market"], "unknown data set 'market'; available: dukemtmc_"),
        (["--mode=evaluate"], "config.json: not found"),
        (["--config.optm.learning_rate=1"], 'Did you mean "optim" instead of "optm"?'),
        (["mode=evaluate"], "no bare arguments (['mode=evaluate'])"),
        (["--workdir={folder}/run[1]"], "run[1]: checkpoints cannot be written below a folder w"),
    ],
)
# ml_collections loads the configuration file so.
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_other_mistakes_are_named(tiny_data_dir, tmp_path, monkeypatch, capsys, options, message):
    """In this process: these are the errors of which the command line prints one line."""
    argv = ["main.py", "--config=configs/synthetic_tiny.py", f"--workdir={tmp_path}"]
    argv += [f"--config.data.data_dir={tiny_data_dir}"]
    argv += [option.replace("{folder}", str(tmp_path)) for option in options]
    monkeypatch.setattr("sys.argv", argv)  # where ml_collections looks for overrides
    with flagsaver.flagsaver(), pytest.raises((UserError, OSError, SystemExit)) as error:
        main.main(parse_flags(argv))
    shown = capsys.readouterr()
    assert message in f"{error.value} {shown.out} {shown.err}"
    assert "Traceback" not in shown.err


@pytest.fixture(scope="module")
def ten_steps(tiny_config, tmp_path_factory):
    """A short run that has finished."""
    workdir = tmp_path_factory.mktemp("ten_steps")
    config = tiny_config(**{"train.epochs": 1.25})
    with one_block():
        train(config, workdir, *_data(config), devices=ONE)
    return workdir


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_a_run_is_not_scored_on_what_it_was_trained_on(
    ten_steps, tiny_config, tmp_path, monkeypatch, capsys
):
    config = tiny_config(**{"train.epochs": 1.25})
    builder = builders.prepared_builder(config.data.dataset, config.data.data_dir)
    train, query = (read_catalog(builder, split) for split in ("train", "query"))
    rows = np.load(ten_steps / "training_images.npy")
    assert [bytes(row).hex() for row in rows] == sorted(train.image_sha256)
    run = shutil.copytree(ten_steps, tmp_path / "run")
    write_training_images(run, [*train.image_sha256, query.image_sha256[3]])
    argv = ["main.py", f"--config=configs/stored.py:{run}", "--mode=evaluate", f"--workdir={run}"]
    monkeypatch.setattr("sys.argv", argv)  # where ml_collections looks for overrides
    with flagsaver.flagsaver(), pytest.raises(DataError) as error:
        main.main(parse_flags(argv))
    assert str(error.value) == (
        f"test images in training: 1 images of {builder.info.full_name} query are also in the "
        f"training set of {run}: {query.filenames[3]}; remove them from one of the two, and "
        "prepare that data set again"
    )
    (run / "training_images.npy").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"training_images\.npy: damaged; put a copy back"):
        evaluation_data(config, run=run)
    assert capsys.readouterr().err == ""
    (run / "training_images.npy").unlink()  # as in runs of 0.1
    evaluation_data(config, run=run)
    assert capsys.readouterr().err == (
        f"warning: {run}: not checked whether the run was trained on images that are scored, as "
        "it has no training_images.npy\n"
    )


def test_another_configuration_does_not_continue_a_run(ten_steps, tiny_config, small_network):
    other = tiny_config(**{"train.epochs": 1.25, "optim.learning_rate": 0.5})
    with pytest.raises(ConfigError, match=r"optim\.learning_rate = 0\.5: .* holds a run with 0\.0"):
        train(other, ten_steps, *_data(other), devices=ONE)
    allowed = tiny_config(**{"train.epochs": 1.25, "train.log_every": 7})
    assert int(train(allowed, ten_steps, *_data(allowed), devices=ONE).step) == 10


@pytest.mark.usefixtures("small_network")
def test_a_nan_stops_with_step_term_and_files(tiny_config, tmp_path):
    config = tiny_config()
    training, evaluation = _data(config)
    planted = {}

    def batches(start):
        for step, batch in enumerate(training.batches(start), start):
            if step == 16:
                planted["files"] = sorted(training.filenames[batch["indices"]])
                batch = batch | {"images": np.full(batch["images"].shape, np.nan, np.float32)}
            yield batch

    with pytest.raises(NonFiniteLossError) as error:
        train(
            config,
            tmp_path,
            dataclasses.replace(training, batches=batches),
            evaluation,
            devices=ONE,
        )
    text = str(error.value)
    assert text.startswith("step 17: ") and "id_main" in text and "triplet_main" in text
    assert ", ".join(sorted(set(planted["files"]))) in text
    with open_checkpoints(tmp_path) as checkpoints:
        assert checkpoints.newest == 10  # the one before the NaN


@pytest.mark.usefixtures("small_network")
@pytest.mark.parametrize("network", NETWORKS)
def test_a_run_stopped_before_its_second_checkpoint_goes_on(tiny_config, tmp_path, network):
    config = tiny_config(**{"train.epochs": 1.25}, **NETWORKS[network])  # 10 steps
    training, evaluation = _data(config)
    broken = dataclasses.replace(
        training, batches=lambda start: itertools.islice(training.batches(start), 5)
    )
    with pytest.raises(StopIteration):
        train(config, tmp_path / "stopped", broken, evaluation, devices=ONE)
    states = [
        train(config, tmp_path / name, training, evaluation, devices=ONE)
        for name in ("stopped", "straight")
    ]
    for a, b in zip(*map(jax.tree.leaves, jax.device_get(states)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert history(tmp_path / "stopped") == history(tmp_path / "straight")


@pytest.mark.parametrize("evaluates", [False, True])
def test_a_run_that_lost_its_checkpoints_is_not_overwritten_by_another(
    ten_steps, tiny_config, tmp_path, small_network, evaluates
):
    workdir = shutil.copytree(ten_steps, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints")
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    checkpoint = {"eval.checkpoint": "untrained"} if evaluates else {}
    other = tiny_config(**{"train.epochs": 1.25, "seed": 7} | checkpoint)
    with pytest.raises(ConfigError, match=r"config\.seed = 7: .* holds a run with 0; use that "):
        begin(other, workdir, evaluates=evaluates)
    if not evaluates:
        with pytest.raises(ConfigError, match=r"config\.seed = 7: "):
            train(other, workdir, *_data(other), devices=ONE)
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    "name",
    ["results/mine.json", "metrics.jsonl", "training_images.npy", "checkpoints/deleted/x",
     "manifest.json"],
)  # fmt: skip
def test_a_new_run_overwrites_no_other_files(tiny_config, tmp_path, name):
    path, config = tmp_path / name, tiny_config()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    named = path.parent if path.name == "x" else path
    message = (
        f"^{named}: a run would overwrite it, but {tmp_path} holds no config.json; move it away"
    )
    with pytest.raises(UserError, match=message):
        begin(config, tmp_path, evaluates=False)
    assert path.read_text() == "mine"
    begin(tiny_config(**{"eval.checkpoint": "untrained"}), tmp_path, evaluates=True)


def test_training_itself_overwrites_no_other_files(tiny_config, tmp_path, small_network):
    (tmp_path / "training_images.npy").write_text("mine")
    config = tiny_config(**{"train.epochs": 1.25})
    with pytest.raises(UserError, match=r"training_images\.npy: a run would overwrite it"):
        train(config, tmp_path, *_data(config), devices=ONE)
    assert (tmp_path / "training_images.npy").read_text() == "mine"


def test_scores_of_the_untrained_network_are_no_run(tiny_config, tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "occluded.untrained.json").write_text("{}")
    begin(tiny_config(), tmp_path, evaluates=False)


def test_a_checkpoint_belongs_to_its_configuration(ten_steps, tiny_config, tmp_path, small_network):
    # As when checkpoints/ is of another run, or config.json was edited or has lost an option.
    workdir = shutil.copytree(ten_steps, tmp_path / "run")
    options = json.loads((workdir / "config.json").read_text())
    lost = {name: value for name, value in options.items() if name != "data.height"}
    free = options | {"train.log_every": 7, "eval.max_rank": 90}
    (workdir / "config.json").write_text(json.dumps(free))
    assert pgfl_jax.load(workdir).step == 10
    for name, here, wrong in (
        ("seed", 7, options | {"seed": 7}),
        ("data.mean", (0.5, 0.5, 0.5), options | {"data.mean": [0.5, 0.5, 0.5]}),
        ("data.height", Config().data.height, lost),
    ):
        (workdir / "config.json").write_text(json.dumps(wrong))
        then = tuple(options[name]) if name == "data.mean" else options[name]
        message = re.escape(
            f"{workdir}/checkpoints/10: was trained with config.{name} = {then!r}, but "
            f"{workdir}/config.json says {here!r}; put back the one that belongs to this run"
        )
        with pytest.raises(ConfigError, match=message):
            pgfl_jax.load(workdir)
    config = tiny_config(**{"train.epochs": 1.25, "seed": 7})
    (workdir / "config.json").write_text(json.dumps(options | {"seed": 7}))
    training, evaluation = _data(config)
    with pytest.raises(
        ConfigError, match=r"checkpoints/10: was trained with config\.seed = 0, but"
    ):
        train(config, workdir, training, evaluation, devices=ONE)
    with pytest.raises(
        ConfigError, match=r"checkpoints/10: was trained with config\.seed = 0, but"
    ):
        evaluate_checkpoint(config, workdir, evaluation)


@pytest.mark.parametrize("what", ["cameras", "image_sha256"])
def test_other_test_images_do_not_choose_the_best_step(what, ten_steps, tiny_config, small_network):
    config = tiny_config(**{"train.epochs": 1.25})
    training, evaluation = _data(config)
    name = evaluation.protocols[0].gallery
    split = evaluation.splits[name]
    changed = {what: getattr(split, what)[::-1]}
    evaluation.splits[name] = dataclasses.replace(split, **changed)
    ours, theirs = (
        data.facts()[f"evaluation data {name}"] for data in (_data(config)[1], evaluation)
    )
    assert ours != theirs
    with pytest.raises(
        ConfigError, match=r"eval\.datasets: the images of .*tiny/query in .* are o"
    ):
        train(config, ten_steps, training, evaluation, devices=ONE)


def test_a_run_of_before_the_test_images_were_hashed_goes_on(ten_steps, tiny_config, small_network):
    config = tiny_config(**{"train.epochs": 1.25})
    manifest = json.loads((ten_steps / "manifest.json").read_text())
    del manifest["best_by_images_sha256"]
    (ten_steps / "manifest.json").write_text(json.dumps(manifest))
    assert int(train(config, ten_steps, *_data(config), devices=ONE).step) == 10


def test_other_data_does_not_continue_a_run(ten_steps, tiny_config, small_network):
    config = tiny_config(**{"train.epochs": 1.25})
    training, evaluation = _data(config)
    changed = dict(training.description, poses_sha256="0" * 64)
    other = dataclasses.replace(training, description=changed)
    with pytest.raises(ConfigError, match=r"was trained on other data \(poses_sha256 was"):
        train(config, ten_steps, other, evaluation, devices=ONE)


def test_other_cameras_do_not_continue_a_run_but_one_of_before_they_were_kept_goes_on(
    ten_steps, tiny_config, small_network
):
    config = tiny_config(**{"train.epochs": 1.25})
    training, evaluation = _data(config)
    changed = dict(training.description, cameras_sha256="0" * 64)
    other = dataclasses.replace(training, description=changed)
    with pytest.raises(ConfigError, match=r"data\.dataset: .* other data \(cameras_sha256 was"):
        train(config, ten_steps, other, evaluation, devices=ONE)
    manifest = json.loads((ten_steps / "manifest.json").read_text())
    del manifest["data"]["cameras_sha256"]
    (ten_steps / "manifest.json").write_text(json.dumps(manifest))
    assert int(train(config, ten_steps, other, evaluation, devices=ONE).step) == 10


def test_a_run_goes_on_with_what_chose_its_best_step(ten_steps, tiny_config, small_network):
    crossed = tiny_config(
        **{"train.epochs": 1.25, "eval.datasets": ("synthetic_occluded_reid/tiny_noisy",)}
    )
    with pytest.raises(ConfigError, match=r"eval\.datasets: .* is chosen by .*tiny/query in"):
        train(crossed, ten_steps, *_data(crossed), devices=ONE)
    first = tiny_config(
        **{
            "train.epochs": 1.25,
            "eval.datasets": (
                "synthetic_occluded_reid/tiny",
                "synthetic_occluded_reid/tiny_noisy",
            ),
        }
    )
    assert int(train(first, ten_steps, *_data(first), devices=ONE).step) == 10


@pytest.mark.usefixtures("small_network")
def test_what_cannot_be_evaluated_is_found_out_before_step_1(tiny_config, tmp_path):
    config = tiny_config(**{"train.epochs": 1.25})
    training, evaluation = _data(config)
    protocol = evaluation.dry_run.protocols[0]
    split = evaluation.dry_run.splits[protocol.gallery]
    hopeless = dataclasses.replace(split, identities=split.identities + 1000)
    evaluation.dry_run.splits[protocol.gallery] = hopeless
    with pytest.raises(EvaluationError, match="occluded"):
        train(config, tmp_path, training, evaluation, devices=ONE)


@pytest.mark.usefixtures("small_network")
def test_pretrained_weights_are_read_and_hashed_once(tiny_config, tmp_path):
    mesh = make_mesh(ONE)
    drawn = _run(tiny_config(seed=1)).init_state(mesh)
    variables = {"params": drawn.params, "batch_stats": drawn.batch_stats}
    path = tmp_path / "net.safetensors"
    save_state_dict(path, to_state_dict(variables, 16))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    config = tiny_config(
        **{
            "model.pretrained": str(path),
            "train.epochs": 0.125,  # one step
            "optim.warmup_epochs": 0.0,
        }
    )
    pretrained = read_pretrained(config)
    path.unlink()  # opening it again would fail
    state = _run(config).init_state(mesh, pretrained)
    ours, theirs = state.params["trunk"], drawn.params["trunk"]
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    train(config, tmp_path / "run", *_data(config), pretrained=pretrained, devices=ONE)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["pretrained_sha256"] == digest
    with pytest.raises(PretrainedError, match="no such file"):
        _run(config).init_state(mesh)


def test_a_recipe_from_random_weights_is_a_warning(tiny_config, ten_steps, tmp_path, capsys):
    begin(tiny_config(**{"model.backbone": "resnet18"}), tmp_path, evaluates=False)
    assert capsys.readouterr().err == (
        "warning: resnet18 starts from random weights; for the field's recipe give "
        "--config.model.pretrained=FILE (docs/pretrained.md)\n"
    )
    run = shutil.copytree(ten_steps, tmp_path / "run")
    stored = (run / "config.json").read_text()
    (run / "config.json").write_text(stored.replace("resnet8", "resnet18"))
    same = tiny_config(**{"model.backbone": "resnet18", "train.epochs": 1.25})
    begin(same, run, evaluates=False)
    untrained = {"model.backbone": "resnet18", "eval.checkpoint": "untrained"}
    begin(tiny_config(**untrained), tmp_path, evaluates=True)
    begin(tiny_config(), tmp_path, evaluates=False)  # no weights of resnet8 are published
    assert capsys.readouterr().err == ""


def test_a_new_run_says_what_it_will_not_reach(tiny_config, capsys, tmp_path):
    begin(tiny_config(**{"loss.kd_ramp": 5.5}), tmp_path, evaluates=False)
    assert capsys.readouterr().err == (
        "warning: config.loss.kd_ramp = 5.5: distillation would reach its weight at epoch 5.5, "
        "after the last one (config.train.epochs = 5)\n"
    )


@pytest.mark.usefixtures("small_network")
def test_a_start_that_failed_leaves_the_workdir_free(tiny_config, tmp_path):
    too_many = tiny_config(**{"data.identities_per_batch": 100, "data.images_per_identity": 2})
    with pytest.raises(DataError, match="only 16 identities; take at most 8, or 16"):
        train(too_many, tmp_path, *_data(too_many), devices=ONE)
    config = tiny_config(**{"train.epochs": 1.25})
    assert int(train(config, tmp_path, *_data(config), devices=ONE).step) == 10


@pytest.mark.usefixtures("small_network")
def test_a_workdir_that_is_lost_during_training_ends_it(tiny_config, tmp_path):
    config = tiny_config(**{"train.epochs": 1.25, "train.eval_every": 5})
    training, evaluation = _data(config)
    workdir = tmp_path / "run"

    def batches(start):
        for number, batch in enumerate(training.batches(start)):
            if number == 3:
                while not (
                    workdir / "checkpoints" / "0"
                ).exists():  # Orbax would print what it could not write
                    time.sleep(0.01)
                shutil.rmtree(workdir)
            yield batch

    losing = dataclasses.replace(training, batches=batches)
    with pytest.raises(UserError, match=re.escape(f"--workdir={workdir}: deleted, moved or repl")):
        train(config, workdir, losing, evaluation, devices=ONE)
    assert not workdir.exists()


OWN_BUILDER = """
import numpy as np, tensorflow as tf, tensorflow_datasets as tfds

class Builder(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict({
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "identity": tfds.features.Scalar(np.int64),
            "camera": tfds.features.Scalar(np.int64),
            "filename": tfds.features.Text(),
            "keypoints": tfds.features.Tensor(shape=(17, 3), dtype=np.float32),
        })
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {name: self._generate_examples(name) for name in ("train", "query", "gallery")}

    def _generate_examples(self, split):
        rng = np.random.default_rng(0)
        for i in range(8):
            pixels = rng.integers(0, 255, (70 + i, 40, 3), np.uint8)
            keypoints = rng.uniform(0, 1, (17, 3)) * [40, 70, 1] if i % 2 else np.zeros((17, 3))
            jpeg = tf.io.encode_jpeg(pixels).numpy()
            png = tf.io.encode_png(pixels).numpy()
            image = DAMAGED if split == "train" and i == 5 else jpeg
            yield i, {
                "image": image, "identity": i // 2, "camera": i % 2 if split == "train" else
                int(split == "query"), "filename": f"{split}_{i}.jpg",
                "keypoints": keypoints.astype(np.float32),
            }
"""


@pytest.fixture
def own_builder(tmp_path, monkeypatch):
    """Adds a data set of one's own: images of several sizes, half of them without a pose."""

    def add(name, *, damaged="jpeg"):
        folder = tmp_path / "builders" / name
        folder.mkdir(parents=True)
        text = OWN_BUILDER.replace("DAMAGED", damaged)
        (folder / f"{name}_dataset_builder.py").write_text(text)
        monkeypatch.setattr(builders, "__path__", [*builders.__path__, str(folder.parent)])

    return add


def _own_config(tiny_config, tmp_path, **changes):
    return tiny_config(
        **{
            "data.dataset": "own_reid",
            "data.data_dir": str(tmp_path / "data"),
            "data.identities_per_batch": 2,
            "data.images_per_identity": 2,
            "train.epochs": 2.0,
            **changes,
        }
    )


@pytest.mark.usefixtures("small_network")
def test_ones_own_data_set_trains(own_builder, tiny_config, tmp_path):
    own_builder("own_reid")
    config = _own_config(tiny_config, tmp_path)
    training, evaluation = _data(config)
    assert training.description["pose_coverage"] == 0.5
    assert [protocol.name for protocol in evaluation.protocols] == ["query"]
    state = train(config, tmp_path / "run", training, evaluation, devices=ONE)
    assert int(state.step) == 4
    result = json.loads((tmp_path / "run" / "results" / "query.json").read_text())
    assert (result["num_valid_queries"], result["by_occlusion"]) == (8, [])


def test_a_broken_image_is_named_and_the_iterator_closed(own_builder, tiny_config, tmp_path):
    # Complete by its markers: only decoding reveals the damage.
    own_builder("broken_reid", damaged="png[:900] + bytes(90) + png[990:]")
    config = _own_config(tiny_config, tmp_path, **{"data.dataset": "broken_reid"})
    training = training_data(config)
    batches = training.batches(0)
    with pytest.raises(DataError, match=r"train_5\.jpg: the image cannot be decoded") as error:
        for _ in range(4):
            next(batches)
    assert error.value.__cause__ is None and error.value.__context__ is None
    assert next(batches, None) is None


def test_a_truncated_image_is_named_before_anything_starts(own_builder, tiny_config, tmp_path):
    own_builder("cut_reid", damaged="jpeg[:-200]")
    config = _own_config(tiny_config, tmp_path, **{"data.dataset": "cut_reid"})
    with pytest.raises(DataError, match=r"cut_reid/.* train: 1 files are not .*: train_5\.jpg;"):
        training_data(config)
