"""The configuration as frozen dataclasses: checked once, before anything starts.

``configs/*.py`` return an ``ml_collections.ConfigDict`` (every option with its default and comment
stands in ``configs/default.py``); :func:`parse_config` turns it into the dataclasses below. Every
problem is a :class:`ConfigError` of one line that names the option.
"""

import dataclasses
import itertools
import math
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from ml_collections import ConfigDict

from pgfl_jax.errors import UserError
from pgfl_jax.losses.weights import LossConfig
from pgfl_jax.models.backbones import BACKBONES
from pgfl_jax.models.classifier import CLASS_MULTIPLE

NUM_PARTS = 8
Backbone = Literal["resnet8", "resnet18", "resnet34", "resnet50", "resnet50_ibn_a"]
Embedding = Literal["main", "foreground", "parts"]


class ConfigError(UserError):
    """A configuration that cannot work; the message names the option and the remedy."""


@dataclasses.dataclass(frozen=True)
class PoseConfig:
    """How keypoints become part maps."""

    source: Literal["annotated", "shuffled", "none"]
    files: tuple[str, ...]
    threshold: float
    sigma: float


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Training augmentation; geometry acts on image and keypoints together."""

    flip: float
    pad: int
    erasing: float
    erasing_area: tuple[float, float]
    erasing_aspect: float


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is read and how a batch is composed."""

    dataset: str
    data_dir: str
    manual_dir: str
    memory_gib: float
    height: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    identities_per_batch: int
    images_per_identity: int
    pose: PoseConfig
    augment: AugmentConfig

    @property
    def batch_size(self) -> int:
        """Images per step, over all devices and processes."""
        return self.identities_per_batch * self.images_per_identity


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network."""

    backbone: Backbone
    pretrained: str
    pooling: Literal["gap", "gem"]
    pose_branches: bool
    dtype: Literal["float32", "bfloat16"]
    remat: Literal["none", "convolutions", "blocks"]


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Optimizer and learning-rate schedule; times in epochs."""

    name: Literal["adam", "adamw", "sgd", "lars", "lamb"]
    learning_rate: float
    scaling: Literal["none", "linear", "sqrt"]
    base_batch_size: int
    weight_decay: float
    momentum: float
    trust_coefficient: float
    clip_norm: float
    ema_decay: float
    schedule: Literal["step", "cosine"]
    warmup_epochs: float
    warmup_factor: float
    milestones: tuple[float, ...]
    decay_factor: float


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How the devices of all processes are arranged; -1 takes what the other axis leaves."""

    data: int
    model: int


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The training loop; ``*_every`` in steps."""

    epochs: float
    accumulation: int
    log_every: int
    eval_every: int
    checkpoint_every: int


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Retrieval evaluation."""

    datasets: tuple[str, ...]
    checkpoint: Literal["newest", "best", "untrained"]
    batch_size: int
    embeddings: tuple[Embedding, ...]
    max_rank: int
    occlusion_bins: tuple[float, ...]
    bootstrap_resamples: int


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything a run depends on."""

    seed: int
    compilation_cache: str
    profile: tuple[int, ...]
    data: DataConfig
    model: ModelConfig
    loss: LossConfig
    optim: OptimConfig
    mesh: MeshConfig
    train: TrainConfig
    eval: EvalConfig

    @property
    def map_shape(self) -> tuple[int, int]:
        """(h, w) of the feature map, and so of the part maps."""
        stride = BACKBONES[self.model.backbone].stride
        return self.data.height // stride, self.data.width // stride

    @property
    def trains_with_poses(self) -> bool:
        """Whether there are teachers, and poses to train them with."""
        return self.model.pose_branches and self.data.pose.source != "none"

    def check_devices(self, count: int) -> None:
        """Raise a ConfigError if ``count`` devices cannot form the mesh or share a batch evenly."""
        data, model = self.mesh.data, self.mesh.model
        fits = count % model == 0 if data == -1 else data * model == count
        wanted = f"times model, {model}, must be the number of devices, {count}, or it must be -1"
        if data == -1:
            wanted = f"with model = {model}: {count} devices cannot form such a mesh"
        _require(fits, "mesh.data", data, wanted)
        batch_size, accumulation = self.data.batch_size, self.train.accumulation
        micro = f" in {accumulation} parts" if accumulation > 1 else ""
        _require(
            batch_size % (accumulation * count) == 0,
            "data.identities_per_batch",
            self.data.identities_per_batch,
            f"times images_per_identity it makes a batch of {batch_size}{micro}, "
            f"which {count} devices cannot share evenly",
        )
        _require(
            self.eval.batch_size % count == 0,
            "eval.batch_size",
            self.eval.batch_size,
            f"{count} devices cannot share it evenly",
        )

    def flat_options(self) -> dict[str, Any]:
        """Every option by its dotted name, ``{"data.height": 256, …}``."""
        return dict(_flatten(dataclasses.asdict(self), ""))


def _flatten(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def parse_config(values: ConfigDict) -> Config:
    """Convert and check a whole configuration.

    Args:
        values: nested, with exactly the options of :class:`Config`.

    Returns:
        The frozen configuration.

    Raises:
        ConfigError: an option is unknown, missing, ill-typed, out of range, or does not go with
            another; one line that names it.
    """
    config = _convert(Config, values.to_dict(), "config")
    _check_ranges(config)
    return config


def _convert(expected: Any, value: Any, path: str) -> Any:
    """Convert ``value`` to the type ``expected``, or raise a ConfigError that names ``path``."""
    origin, args = typing.get_origin(expected), typing.get_args(expected)
    if dataclasses.is_dataclass(expected):
        return _convert_dataclass(expected, value, path)
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{path}: {value!r} is not one of {', '.join(map(str, args))}")
        return value
    if origin is tuple:
        return _convert_tuple(args, value, path)
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise ConfigError(f"{path}: expected {expected.__name__}, got {value!r}")
    if expected is float and not math.isfinite(value):
        raise ConfigError(f"{path} = {value!r}: must be finite")
    return value


def _convert_dataclass(cls: Any, value: Any, path: str) -> Any:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path}: expected a group of options, got {value!r}")
    hints = typing.get_type_hints(cls)
    for name in value:
        if name not in hints:
            raise ConfigError(f"{path}.{name}: unknown option; known are {', '.join(hints)}")
    for name in hints:
        if name not in value:
            raise ConfigError(f"{path}.{name}: missing option")
    return cls(**{name: _convert(hints[name], value[name], f"{path}.{name}") for name in hints})


def _convert_tuple(args: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{path}: expected a tuple, got {value!r}")
    types_ = args[:1] * len(value) if args[-1] is Ellipsis else args
    if len(types_) != len(value):
        raise ConfigError(f"{path}: expected {len(types_)} values, got {value!r}")
    return tuple(
        _convert(type_, item, f"{path}[{i}]")
        for i, (type_, item) in enumerate(zip(types_, value, strict=True))
    )


# What holds, the option to blame if it does not, and what is wanted of it.
_Check = tuple[bool, str, str]


def _check_ranges(config: Config) -> None:
    """Everything that types cannot say."""
    options = config.flat_options()
    for checks in (_data_checks, _loss_checks, _optim_checks, _mesh_checks, _eval_checks):
        for condition, option, message in checks(config):
            _require(condition, option, options[option], message)


def _data_checks(config: Config) -> Iterator[_Check]:
    data, pose, augment = config.data, config.data.pose, config.data.augment
    yield 0 <= config.seed < 2**32, "seed", "must lie in [0, 2**32)"
    profile = config.profile
    message = "must be empty or (first, last) with 1 <= first <= last, the steps to be traced"
    yield not profile or (len(profile) == 2 and 1 <= profile[0] <= profile[1]), "profile", message
    message = "the triplet loss needs at least 2 identities"
    yield data.identities_per_batch >= 2, "data.identities_per_batch", message
    message = "the triplet loss needs at least 2 images"
    yield data.images_per_identity >= 2, "data.images_per_identity", message
    stride = BACKBONES[config.model.backbone].stride
    for side in ("height", "width"):
        size = getattr(data, side)
        message = f"must be a multiple of {config.model.backbone}'s stride, {stride}"
        yield size > 0 and size % stride == 0, f"data.{side}", message
    channels = BACKBONES[config.model.backbone].channels
    message = f"{channels} channels cannot be divided among {NUM_PARTS} parts"
    yield channels % NUM_PARTS == 0, "model.backbone", message
    yield data.memory_gib >= 0, "data.memory_gib", "must not be negative"
    yield min(data.std) > 0, "data.std", "must be above 0"
    yield 0 <= pose.threshold <= 1, "data.pose.threshold", "must lie in [0, 1]"
    yield pose.sigma > 0, "data.pose.sigma", "must be above 0"
    yield 0 <= augment.flip <= 1, "data.augment.flip", "must lie in [0, 1]"
    yield augment.pad >= 0, "data.augment.pad", "must not be negative"
    yield 0 <= augment.erasing <= 1, "data.augment.erasing", "must lie in [0, 1]"
    low, high = augment.erasing_area
    yield 0 < low <= high < 1, "data.augment.erasing_area", "must be 0 < low <= high < 1"
    yield 0 < augment.erasing_aspect <= 1, "data.augment.erasing_aspect", "must lie in (0, 1]"


def _loss_checks(config: Config) -> Iterator[_Check]:
    loss = config.loss
    for name in ("identity", "triplet", "alignment", "semantic", "feature_kd", "logit_kd",
                 "interaction", "margin", "kd_start", "kd_ramp"):  # fmt: skip
        yield getattr(loss, name) >= 0, f"loss.{name}", "must not be negative"
    yield 0 <= loss.smoothing < 1, "loss.smoothing", "must lie in [0, 1)"
    yield loss.temperature > 0, "loss.temperature", "must be above 0"
    variant = loss.interaction_variant
    weighed = variant in ("cross_classifier", "cross_triplet")
    wanted = "must be above 0" if weighed else "must be 0"
    message = f"{wanted} with config.loss.interaction_variant={variant}"
    yield (loss.interaction > 0) == weighed, "loss.interaction", message
    message = "needs config.model.pose_branches=True"
    yield config.model.pose_branches or variant == "off", "loss.interaction_variant", message


def _optim_checks(config: Config) -> Iterator[_Check]:
    optim, train = config.optim, config.train
    yield train.epochs > 0, "train.epochs", "must be above 0"
    for name in ("log_every", "eval_every", "checkpoint_every"):
        yield getattr(train, name) > 0, f"train.{name}", "must be above 0"
    yield optim.learning_rate > 0, "optim.learning_rate", "must be above 0"
    yield optim.weight_decay >= 0, "optim.weight_decay", "must not be negative"
    yield 0 <= optim.momentum < 1, "optim.momentum", "must lie in [0, 1)"
    yield optim.base_batch_size > 0, "optim.base_batch_size", "must be above 0"
    yield optim.trust_coefficient > 0, "optim.trust_coefficient", "must be above 0"
    yield optim.clip_norm >= 0, "optim.clip_norm", "must not be negative (0: no clipping)"
    yield 0 <= optim.ema_decay < 1, "optim.ema_decay", "must lie in [0, 1) (0: no average)"
    identities, parts = config.data.identities_per_batch, train.accumulation
    message = f"must divide data.identities_per_batch, {identities}, and leave 2 for each part"
    fits = parts > 0 and identities % parts == 0 and identities // parts >= 2
    yield fits, "train.accumulation", message
    message = f"must lie in [0, config.train.epochs), that is below {train.epochs}"
    yield 0 <= optim.warmup_epochs < train.epochs, "optim.warmup_epochs", message
    yield 0 <= optim.warmup_factor <= 1, "optim.warmup_factor", "must lie in [0, 1]"
    if optim.schedule == "step":
        times = (optim.warmup_epochs, *optim.milestones)
        rising = all(before < after for before, after in itertools.pairwise(times))
        yield rising, "optim.milestones", "must rise and come after the warm-up"


def _mesh_checks(config: Config) -> Iterator[_Check]:
    mesh = config.mesh
    yield mesh.data == -1 or mesh.data > 0, "mesh.data", "must be above 0, or -1"
    message = f"must divide {CLASS_MULTIPLE}, to which the identity classifiers are filled up"
    yield mesh.model > 0 and CLASS_MULTIPLE % mesh.model == 0, "mesh.model", message


def _eval_checks(config: Config) -> Iterator[_Check]:
    evaluation, names = config.eval, config.eval.embeddings
    once = len(set(evaluation.datasets)) == len(evaluation.datasets)
    yield once, "eval.datasets", "must not name a data set twice"
    yield evaluation.batch_size > 0, "eval.batch_size", "must be above 0"
    yield names[:1] == ("main",), "eval.embeddings", "must begin with main"
    message = "only main is trained without config.model.pose_branches or without poses"
    yield config.trains_with_poses or names == ("main",), "eval.embeddings", message
    message = "must be at least 20, the last rank reported"
    yield evaluation.max_rank >= 20, "eval.max_rank", message
    rising = all(low < high for low, high in itertools.pairwise(evaluation.occlusion_bins))
    yield rising, "eval.occlusion_bins", "must rise"
    yield evaluation.bootstrap_resamples > 0, "eval.bootstrap_resamples", "must be above 0"


def _require(condition: bool, option: str, value: Any, message: str) -> None:
    if not condition:
        raise ConfigError(f"config.{option} = {value!r}: {message}")
