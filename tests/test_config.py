import dataclasses

import pytest

from configs import default, large_batch, synthetic_benchmark, synthetic_demo, synthetic_tiny
from input_pipeline import keypoints
from pgfl_jax.config import NUM_PARTS, ConfigError, oddities, parse_config


@pytest.mark.parametrize(
    "module", [default, large_batch, synthetic_benchmark, synthetic_demo, synthetic_tiny]
)
def test_every_shipped_configuration_is_valid_and_reaches_the_dataclasses(module):
    values = module.get_config()
    config = parse_config(values)
    options = config.flat_options()
    assert options["optim.learning_rate"] == values.optim.learning_rate
    assert options["data.augment.erasing_area"] == (0.02, 0.4)
    assert options["loss.margin"] == 0.3


def test_a_map_cell_is_the_backbones_stride():
    assert parse_config(default.get_config()).map_shape == (16, 8)
    assert parse_config(synthetic_demo.get_config()).map_shape == (16, 8)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("model.drop_path", 0.1, "must be 0 with resnet50"),
        (
            "data.height",
            250,
            "config.data.height = 250: must be a multiple of the stride, 16",
        ),
        ("data.identities_per_batch", 1, "at least 2"),
        ("data.images_per_identity", 1, "at least 2"),
        ("data.pose.source", "estimated", "'estimated' is not one of annotated, none, shuffled"),
        ("data.augment.erasing_area", (0.4, 0.02), "0 < low <= high < 1"),
        ("data.mean", (0.5, 0.5), "config.data.mean: expected 3 values"),
        (
            "data.mean",
            (123.7, 116.3, 103.5),
            "must be in [-1, 2]; divide by 255 what is meant for 0-255",
        ),
        (
            "data.std",
            (58.4, 57.1, 57.4),
            "must be in [0.001, 2]; divide by 255 what is meant for 0-255",
        ),
        ("data.std", (1e-30, 1.0, 1.0), "config.data.std[0] = 1e-30: must be in [0.001, 2]"),
        ("data.pose.sigma", 1e-30, "must be in [0.001, 1]"),
        ("train.epochs", 1e300, "must be above 0, and 1,000,000 at most"),
        ("optim.decay_factor", -1.0, "must be in (0, 1]"),
        ("model.backbone", "vit", "'vit': is not one of resnet8"),
        ("loss.triplet", -1.0, "config.loss.triplet = -1.0: must not be negative"),
        ("loss.temperature", 0.0, "must be above 0"),
        ("optim.warmup_epochs", 120.0, "must be in [0, config.train.epochs)"),
        ("optim.milestones", (70.0, 40.0), "must rise"),
        ("optim.milestones", (10.0, 40.0), "must rise and come after the warm-up"),
        (
            "loss.kd_start",
            120.0,
            "config.loss.kd_start = 120.0: must be below config.train.epochs, 120, or nothing is "
            "ever distilled; for that, set loss.feature_kd and loss.logit_kd to 0",
        ),
        ("optim.weight_decay", float("inf"), "must be finite"),
        ("seed", 2**32, "must be in [0, 2**32)"),
        ("loss.interaction", 1.0, "must be 0 with config.loss.interaction_variant=off"),
        ("train.log_every", 0, "must be above 0"),
        ("train.accumulation", 3, "must divide data.identities_per_batch, 16, and leave 2"),
        ("train.accumulation", 16, "must divide data.identities_per_batch, 16, and leave 2"),
        ("train.accumulation", 0, "must divide data.identities_per_batch"),
        ("mesh.model", 3, "must divide 128"),
        ("mesh.data", 0, "must be above 0, or -1"),
        ("optim.ema_decay", 1.0, "must be in [0, 1)"),
        ("optim.clip_norm", -1.0, "must not be negative"),
        ("profile", (5,), "must be empty or (first, last)"),
        ("profile", (5, 4), "must be empty or (first, last)"),
        ("eval.embeddings", ("foreground",), "must begin with main"),
        ("eval.checkpoint", "last", "must be newest, best, untrained or a step"),
        ("eval.checkpoint", "-3", "must be newest, best, untrained or a step"),
        ("eval.occlusion_bins", (0.5, 0.2), "must rise"),
        ("eval.occlusion_bins", (0.0, 20.0, 100.0), "must be in [0, 1]; divide percentages by 100"),
        ("eval.occlusion_bins", (-0.1, 0.5), "must be in [0, 1]"),
        ("eval.embeddings", ("main", "parts", "parts"), "must not name an embedding twice"),
        ("model.pooling", "cls", "resnet50 has no class token"),
        ("data.augment.pad", 65, "must be at most half the shorter side, 64, or crops show little"),
    ],
)
def test_an_impossible_value_is_named_in_one_line(option, value, message):
    values = default.get_config()
    values.update_from_flattened_dict({option: value})
    with pytest.raises(ConfigError) as error:
        parse_config(values)
    text = str(error.value)
    assert message in text and f"config.{option}" in text and "\n" not in text


def test_options_must_exist_and_have_their_type():
    values = default.get_config()
    values.optim.lr = 0.1
    with pytest.raises(ConfigError, match=r"config\.optim\.lr: unknown option; known are name, l"):
        parse_config(values)
    values = default.get_config()
    del values.optim["learning_rate"]
    assert parse_config(values).optim.learning_rate == 3.5e-4  # its default
    values = default.get_config()
    with values.ignore_type():
        values.train.log_every = "often"
        with pytest.raises(ConfigError, match=r"config\.train\.log_every: expected int, got 'of"):
            parse_config(values)
        values.train.log_every = True
        with pytest.raises(ConfigError, match=r"config\.train\.log_every: expected int, got True"):
            parse_config(values)


def test_distillation_that_does_not_exist_may_start_late():
    values = default.get_config()
    values.model.pooling = "gap"
    values.loss.kd_start, values.loss.feature_kd = 120.0, 0.0
    assert oddities(parse_config(values)) == []
    values.loss.feature_kd, values.data.pose.source = 3.0, "none"
    assert oddities(parse_config(values)) == []


def test_what_training_never_reaches_is_a_warning():
    values = default.get_config()
    values.loss.kd_start, values.loss.kd_ramp = 60.0, 60.0
    assert oddities(parse_config(values)) == []
    values.loss.kd_ramp, values.train.epochs = 10.0, 69.5
    assert oddities(parse_config(values)) == [
        "config.loss.kd_ramp = 10: distillation would reach its weight at epoch 70, after the last "
        "one (config.train.epochs = 69.5)",
        "config.optim.milestones = (40.0, 70.0): training ends before epoch 70 "
        "(config.train.epochs = 69.5), so the learning rate does not fall there",
    ]
    values.optim.schedule, values.model.pose_branches = "cosine", False
    assert oddities(parse_config(values)) == [
        "config.model.pooling = 'parts': without poses nothing teaches the main branch the maps "
        "that it pools with; a baseline pools by 'gap'"
    ]
    values.model.pooling = "gap"
    assert oddities(parse_config(values)) == []


@pytest.mark.parametrize(
    ("pose_branches", "source"), [(True, "annotated"), (False, "annotated"), (True, "none")]
)
def test_a_loss_must_have_a_weight(pose_branches, source):
    values = default.get_config()
    values.model.pose_branches, values.data.pose.source = pose_branches, source
    values.loss.update(identity=0.0, triplet=0.0)
    if pose_branches and source == "annotated":
        parse_config(values)  # the other losses train
        values.loss.update(alignment=0.0, semantic=0.0, feature_kd=0.0, maps=0.0)
    with pytest.raises(ConfigError) as error:
        parse_config(values)
    assert str(error.value) == (
        "config.loss.identity = 0.0: no loss has a weight above 0, so nothing would be trained"
    )


def test_teachers_need_the_pose_branches():
    values = default.get_config()
    values.model.pose_branches = False
    values.eval.embeddings = ("main", "parts")
    with pytest.raises(ConfigError, match=r"only main is trained"):
        parse_config(values)


@pytest.mark.parametrize(
    ("data", "model", "devices", "message"),
    [
        (4, 2, 8, None),
        (-1, 4, 8, None),
        (4, 2, 4, r"config\.mesh\.data = 4: with 4 devices and model = 2 it must be 2, or -1"),
        (-1, 8, 4, r"config\.mesh\.model = 8: must divide the number of devices, 4"),
    ],
)
def test_the_mesh_must_take_all_devices(data, model, devices, message):
    values = default.get_config()
    values.mesh.data, values.mesh.model = data, model
    config = parse_config(values)
    if message is None:
        config.check_devices(devices)
    else:
        with pytest.raises(ConfigError, match=message):
            config.check_devices(devices)


def test_every_part_of_a_batch_must_be_divisible_by_the_devices():
    values = default.get_config()
    values.train.accumulation = 8
    config = parse_config(values)
    config.check_devices(8)
    with pytest.raises(ConfigError, match=r"a batch of 64 in 8 parts, .* take a multiple of 32$"):
        config.check_devices(16)


def test_a_batch_must_be_divisible_by_the_devices():
    config = parse_config(default.get_config())
    config.check_devices(8)
    with pytest.raises(
        ConfigError, match=r"identities_per_batch = 16: .* 64, .* take a multiple of 3$"
    ):
        config.check_devices(3)
    evaluation = dataclasses.replace(config.eval, batch_size=12)
    with pytest.raises(
        ConfigError,
        match=r"eval\.batch_size = 12: 8 devices .* take a multiple of 8$",
    ):
        dataclasses.replace(config, eval=evaluation).check_devices(8)


def test_channels_must_be_divisible_by_the_parts(monkeypatch):
    from pgfl_jax import config as module

    monkeypatch.setattr(module, "NUM_PARTS", 7)
    with pytest.raises(ConfigError, match=r"model\.backbone .* 2048 channels cannot be divided"):
        parse_config(default.get_config())


def test_an_interaction_needs_its_weight():
    values = default.get_config()
    values.loss.interaction_variant = "cross_triplet"
    with pytest.raises(ConfigError, match=r"loss\.interaction = 0\.0: must be above 0 with"):
        parse_config(values)


def test_poses_have_as_many_parts():
    assert keypoints.NUM_PARTS == NUM_PARTS


def test_the_soft_margin_replaces_the_margin():
    values = default.get_config()
    assert parse_config(values).loss.triplet_margin == 0.3
    values.loss.soft_margin = True
    assert parse_config(values).loss.triplet_margin is None
