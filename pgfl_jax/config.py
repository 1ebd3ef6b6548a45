"""Every option of a run: name, type, default, range and meaning, declared once.

``configs/*.py`` start from these defaults and change what differs. Any option can be set on the
command line: ``--config.optim.learning_rate=1e-3``. The defaults are the recipe that the field
shares (docs/method.md, "Recipe defaults").
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pgfl_jax.models.backbones import BACKBONES
from pgfl_jax.models.branches import NUM_PARTS
from pgfl_jax.models.classifier import CLASS_MULTIPLE
from pgfl_jax.options import (
    Check,
    ConfigError,
    FilePath,
    Fraction,
    FractionBelowOne,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveFraction,
    PositiveInt,
    convert,
    flatten,
    nest,
)

__all__ = ["NUM_PARTS", "Config", "ConfigError", "parse_config", "stored_config"]

Embedding = Literal["main", "foreground", "parts", "joined"]
Distance = Literal["cosine", "euclidean"]
InteractionVariant = Literal["off", "cross_classifier", "cross_triplet", "shared_classifier"]

_AtLeastTwo = Annotated[int, Check(lambda n: n >= 2, "the triplet loss needs at least 2")]
_Mean = Annotated[
    float,
    Check(lambda x: -1 <= x <= 2, "must be in [-1, 2]; divide by 255 what is meant for 0-255"),
]
_Std = Annotated[
    float,
    Check(lambda x: 1e-3 <= x <= 2, "must be in [0.001, 2]; divide by 255 what is meant for 0-255"),
]
_Sigma = Annotated[float, Check(lambda value: 1e-3 <= value <= 1, "must be in [0.001, 1]")]
_Epochs = Annotated[
    float, Check(lambda value: 0 < value <= 1e6, "must be above 0, and 1,000,000 at most")
]
_AreaRange = Annotated[
    tuple[float, float], Check(lambda r: 0 < r[0] <= r[1] < 1, "must be 0 < low <= high < 1")
]
_Backbone = Annotated[
    str, Check(lambda name: name in BACKBONES, f"is not one of {', '.join(BACKBONES)}")
]
_Checkpoint = Annotated[
    str,
    Check(
        lambda name: bool(re.fullmatch("newest|best|untrained|[0-9]+", name)),
        "must be newest, best, untrained or a step",
    ),
]
_Rates = Annotated[
    tuple[float, ...],
    Check(lambda rates: all(0 < rate < 1 for rate in rates), "must be in (0, 1)"),
]
_Steps = Annotated[
    tuple[int, ...],
    Check(
        lambda steps: not steps or (len(steps) == 2 and 1 <= steps[0] <= steps[1]),
        "must be empty or (first, last) with 1 <= first <= last, the steps to trace",
    ),
]


@dataclasses.dataclass(frozen=True)
class PoseConfig:
    """How keypoints become part maps."""

    # annotated · none; and controls for comparison: shuffled (each image gets another's pose) ·
    # redrawn (others each epoch) · same_person (that of another image of the person) · average (all
    # get the mean maps) · everywhere (all maps are 1, but in the padding and where erased)
    source: Literal[
        "annotated", "none", "shuffled", "redrawn", "same_person", "average", "everywhere"
    ] = "annotated"
    # Files of input_pipeline.poses (docs/poses.md). Their poses replace the data set's own, matched
    # by the images' content.
    files: tuple[FilePath, ...] = ()
    # Keypoints with less confidence are not drawn.
    threshold: Fraction = 0.2
    # Width of joints and limbs in part maps, as a fraction of the image height.
    sigma: _Sigma = 0.035


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Training augmentation; geometry acts on image and keypoints together."""

    # Probability of a left-right flip.
    flip: Fraction = 0.5
    # Pixels of padding on each side before the random crop, at most half the input's shorter side;
    # 0 turns it off.
    pad: NonNegativeInt = 10
    # Probability of random erasing, its range of area (fraction of the image) and its lowest aspect
    # ratio (the highest is the inverse).
    erasing: Fraction = 0.5
    erasing_area: _AreaRange = (0.02, 0.4)
    erasing_aspect: PositiveFraction = 0.3
    # What the erased rectangle shows: mean (of the data) · image (what the next person of the batch
    # has there, like an obstacle)
    erasing_fill: Literal["mean", "image"] = "mean"


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is read and how a batch is composed."""

    # A folder of input_pipeline/builders and, where it has more than one configuration, the
    # configuration's name (docs/datasets.md).
    dataset: str = "synthetic_occluded_reid/benchmark"
    # Where prepared data sets are kept.
    data_dir: FilePath = "data"
    # Where the published data sets are, as folders or archives. Needed once, to prepare them; a
    # table of your own needs it always.
    manual_dir: FilePath = ""
    # Encoded training images are held in memory up to this size. A larger training set, and all
    # evaluation images, are read from disk on demand.
    memory_gib: NonNegativeFloat = 4.0
    # Size of the network's input in pixels.
    height: PositiveInt = 256
    width: PositiveInt = 128
    # Normalisation of RGB in [0, 1]: ImageNet's statistics.
    mean: tuple[_Mean, _Mean, _Mean] = (0.485, 0.456, 0.406)
    std: tuple[_Std, _Std, _Std] = (0.229, 0.224, 0.225)
    # P and K: a batch has P identities with K images each, over all devices.
    identities_per_batch: _AtLeastTwo = 16
    images_per_identity: _AtLeastTwo = 4
    pose: PoseConfig = PoseConfig()
    augment: AugmentConfig = AugmentConfig()

    @property
    def batch_size(self) -> int:
        """Images per step, over all devices and processes."""
        return self.identities_per_batch * self.images_per_identity


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network."""

    # A name in pgfl_jax.models.backbones.BACKBONES; resnet8 is for small images and CPUs.
    backbone: _Backbone = "resnet50"
    # PyTorch weights of that backbone to start from, .pth or .safetensors; empty: random ones. They
    # expect images normalised by data.mean and data.std (docs/pretrained.md).
    pretrained: FilePath = ""
    # Pooling of the main branch: gap · gem · context (a plain mean of features that have seen their
    # neighbourhood) · by maps that it predicts from its own features, of the foreground or of each
    # part (docs/method.md, "Branches") · cls (the class token of a vision transformer instead)
    pooling: Literal["gap", "gem", "context", "foreground", "parts", "cls"] = "parts"
    # False: the baseline, the main branch alone in training too.
    pose_branches: bool = True
    # Precision of convolutions and matrix products. Parameters, statistics, pooled features and
    # losses are always float32.
    dtype: Literal["float32", "bfloat16"] = "float32"
    # What the backward pass recomputes to save memory: none · convolutions (their results are kept,
    # everything between them is recomputed) · blocks (only the blocks' inputs are kept)
    remat: Literal["none", "convolutions", "blocks"] = "none"
    # Share of the pictures that skip the last residual in training; it rises from 0 at the first.
    # For transformers and ConvNeXt.
    drop_path: FractionBelowOne = 0.0


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """How the losses add up (docs/method.md, "Losses")."""

    # Weights. A loss of weight 0 is neither computed nor reported. The identity and triplet losses
    # count once for each branch, a distillation once for each teacher.
    identity: NonNegativeFloat = 1.0
    triplet: NonNegativeFloat = 1.0
    alignment: NonNegativeFloat = 0.3
    semantic: NonNegativeFloat = 0.3
    feature_kd: NonNegativeFloat = 12.0
    logit_kd: NonNegativeFloat = 0.0
    interaction: NonNegativeFloat = 0.0
    # Prediction of the maps, where the main branch's pooling predicts any.
    maps: NonNegativeFloat = 3.0
    # Which branches the main branch learns from: both · foreground · parts
    teachers: Literal["both", "foreground", "parts"] = "parts"
    # Label smoothing of the identity losses.
    smoothing: FractionBelowOne = 0.1
    # Margin of the triplet losses, and whether the soft margin, log(1 + exp(dp - dn)), replaces it.
    margin: NonNegativeFloat = 0.3
    soft_margin: bool = False
    # Temperature of the logit distillation.
    temperature: PositiveFloat = 4.0
    # energy (-log of the energy's share on the foreground) · cosine (1 - cosine between MB's
    # embedding and FEB's, which gets no gradient)
    alignment_variant: Literal["energy", "cosine"] = "energy"
    # off · cross_classifier · cross_triplet (both weighted by "interaction") · shared_classifier
    interaction_variant: InteractionVariant = "off"
    # Epoch at which distillation starts, and epochs over which it ramps up to its weight.
    kd_start: NonNegativeFloat = 0.0
    kd_ramp: NonNegativeFloat = 0.0

    @property
    def triplet_margin(self) -> float | None:
        """The margin as `losses.batch_hard_triplet` takes it: None for the soft one."""
        return None if self.soft_margin else self.margin


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Optimizer and learning-rate schedule; times in epochs."""

    # adam (L2 decay) · adamw (decoupled decay) · sgd (momentum, L2 decay) · lars · lamb
    name: Literal["adam", "adamw", "sgd", "lars", "lamb"] = "adam"
    learning_rate: PositiveFloat = 3.5e-4
    # How the rate follows the batch size, relative to base_batch_size: none · linear (times the
    # ratio) · sqrt (times its root)
    scaling: Literal["none", "linear", "sqrt"] = "none"
    base_batch_size: PositiveInt = 64
    weight_decay: NonNegativeFloat = 5e-4
    # all · kernels (no biases, scales, position embeddings and class tokens). With lars and lamb,
    # kernels alone decay in any case.
    decayed: Literal["all", "kernels"] = "all"
    # Rate of a layer of the backbone relative to that of the next one; 1: all have the same.
    layer_decay: PositiveFraction = 1.0
    # Rate of what comes after the backbone, relative to the backbone's last layer.
    head_rate: PositiveFloat = 1.0
    # For sgd and lars.
    momentum: FractionBelowOne = 0.9
    # For lars: a layer's step relative to its weights, at a rate of 1.
    trust_coefficient: PositiveFloat = 0.001
    # Gradients longer than this, over all parameters, are scaled down to it; 0: no clipping.
    clip_norm: NonNegativeFloat = 0.0
    # Decay of a running average of the parameters, which is scored too; 0: no average.
    ema_decay: FractionBelowOne = 0.0
    # step (times decay_factor at each milestone) · cosine (to zero)
    schedule: Literal["step", "cosine"] = "step"
    # Linear warm-up from warmup_factor times the rate.
    warmup_epochs: NonNegativeFloat = 10.0
    warmup_factor: Fraction = 0.01
    # Epochs.
    milestones: tuple[float, ...] = (40.0, 70.0)
    decay_factor: PositiveFraction = 0.1


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices are arranged as data x model, over all processes (docs/scaling.md).

    The batch is split over all of them, the identity classifiers over ``model``.
    """

    # -1: all devices that the other axis leaves.
    data: Annotated[int, Check(lambda n: n == -1 or n > 0, "must be above 0, or -1")] = -1
    model: Annotated[
        int,
        Check(
            lambda n: n > 0 and CLASS_MULTIPLE % n == 0,
            f"must divide {CLASS_MULTIPLE}, to which the identity classifiers are padded",
        ),
    ] = 1


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The training loop."""

    # An epoch is as many steps as batches fit into the training images.
    epochs: _Epochs = 120.0
    # Parts in which a batch is computed, one after the other, to save memory. Each part mines its
    # own triplets and takes its own batch statistics (docs/scaling.md).
    accumulation: int = 1
    # Steps between progress lines, evaluations and checkpoints.
    log_every: PositiveInt = 50
    eval_every: PositiveInt = 2000
    checkpoint_every: PositiveInt = 1000
    # Query images that TensorBoard shows at each evaluation, with the maps of the pose and of the
    # main branch; 0: none.
    pictures: NonNegativeInt = 8


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Retrieval evaluation."""

    # Data sets to evaluate on; empty: data.dataset itself. The first set's first protocol selects
    # the best step.
    datasets: tuple[str, ...] = ()
    # What --mode=evaluate takes: newest · best (by the first protocol's mAP) · a step, as "960" ·
    # untrained (needs no run)
    checkpoint: _Checkpoint = "newest"
    # Images per evaluation batch at most, over all devices; a split is cut into even batches.
    batch_size: PositiveInt = 256
    # main (images alone) · foreground, parts (the teachers, with the test set's poses) · joined
    # (these three in one row, for study)
    embeddings: tuple[Embedding, ...] = ("main",)
    # True: embed each image and its mirror image, and take the mean.
    flip: bool = False
    # cosine (of rows of length 1) · euclidean (of the rows as they are)
    distance: Distance = "cosine"
    # True: score k-reciprocal re-ranking too, beside the plain ranking (docs/method.md).
    rerank: bool = False
    # Length of the CMC curve.
    max_rank: Annotated[
        int, Check(lambda n: n >= 20, "must be at least 20, the last rank reported")
    ] = 50
    # Edges of the bins of query occlusion that are scored separately, in [0, 1].
    occlusion_bins: tuple[float, ...] = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 1.0)
    # Resamples of the 95 % intervals over queries.
    bootstrap_resamples: PositiveInt = 1000
    # True: training ends with report/index.html in the run's folder (docs/report.md).
    report: bool = False
    # Folders of other runs that this report shows beside the run.
    compare: tuple[FilePath, ...] = ()
    # Rates of accepted pairs of different people, in (0, 1), that a threshold is calibrated for.
    false_accept_rates: _Rates = (1e-4, 1e-3, 1e-2, 1e-1)


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything a run depends on."""

    # Everything random follows from this: parameters, sampling, augmentation, bootstrap.
    seed: Annotated[int, Check(lambda n: 0 <= n < 2**32, "must be in [0, 2**32)")] = 0
    # Compiled programs are kept here from one start to the next; empty: nowhere.
    compilation_cache: FilePath = ".cache/jax"
    # First and last step to trace into WORKDIR/profile, for TensorBoard's or XProf's profile page,
    # such as (20, 25).
    profile: _Steps = ()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    mesh: MeshConfig = MeshConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()

    @property
    def map_shape(self) -> tuple[int, int]:
        """(h, w) of the feature map, and so of the part maps."""
        return BACKBONES[self.model.backbone].map_shape(self.data.height, self.data.width)

    @property
    def trains_with_poses(self) -> bool:
        """Whether there are teachers, and poses to train them with."""
        return self.model.pose_branches and self.data.pose.source != "none"

    @property
    def distils(self) -> bool:
        """Whether there are teachers that the main branch learns from."""
        return self.trains_with_poses and bool(self.loss.feature_kd or self.loss.logit_kd)

    @property
    def scores_with_poses(self) -> bool:
        """Whether a teacher is scored; only teachers read poses."""
        return self.eval.embeddings != ("main",)

    def check_devices(self, count: int) -> None:
        """Raise a ConfigError if ``count`` devices cannot form the mesh or share a batch evenly."""
        data, model = self.mesh.data, self.mesh.model
        fits = count % model == 0 if data == -1 else data * model == count
        if data == -1 or count % model:
            message = f"must divide the number of devices, {count}"
            _require(count % model == 0, "mesh.model", model, message)
        message = f"with {count} devices and model = {model} it must be {count // model}, or -1"
        _require(fits, "mesh.data", data, message)
        batch_size, accumulation = self.data.batch_size, self.train.accumulation
        micro = f" in {accumulation} parts" if accumulation > 1 else ""
        parts = accumulation * count
        step = math.lcm(parts // math.gcd(parts, self.data.images_per_identity), accumulation)
        _require(
            batch_size % parts == 0,
            "data.identities_per_batch",
            self.data.identities_per_batch,
            f"times images_per_identity it makes a batch of {batch_size}{micro}, "
            f"which {count} devices cannot share evenly; take a multiple of {step}",
        )
        _require(
            self.eval.batch_size % count == 0,
            "eval.batch_size",
            self.eval.batch_size,
            f"{count} devices cannot share it evenly; take a multiple of {count}",
        )

    def flat_options(self) -> dict[str, Any]:
        """Every option by its dotted name, ``{"data.height": 256, …}``."""
        return dict(flatten(dataclasses.asdict(self)))


def parse_config(values: Any) -> Config:
    """Convert and check a whole configuration.

    Args:
        values: nested groups of options, a mapping or an ``ml_collections.ConfigDict``. An option
            that is not there has its default.

    Returns:
        The frozen configuration.

    Raises:
        ConfigError: an option is unknown, ill-typed, out of range, or does not fit another; one
            line that names it.
    """
    nested = values if isinstance(values, Mapping) else values.to_dict()
    config = convert(Config, nested, "config")
    options = config.flat_options()
    for checks in (_image_checks, _loss_checks, _optim_checks, _eval_checks):
        for condition, option, message in checks(config):
            _require(condition, option, options[option], message)
    return config


# Values that reproduce older versions, for options whose default differs.
_BEFORE = {"loss.teachers": "both"}


def stored_config(options: Any) -> Config:
    """The configuration of a run, from the dotted names and values of its ``config.json``.

    An option that the run's version did not have takes the value that reproduces what that version
    did: its default, or what ``_BEFORE`` has for it (CONTRIBUTING.md).

    Raises:
        ConfigError: an option that this version does not have, or a value that it refuses.
    """
    if not isinstance(options, Mapping):
        raise ConfigError(f"config: expected a group of options, got {options!r}")
    config = parse_config(nest(_BEFORE | dict(options)))
    data = dataclasses.replace(config.data, dataset=current_dataset_name(config.data.dataset))
    datasets = tuple(map(current_dataset_name, config.eval.datasets))
    return dataclasses.replace(
        config, data=data, eval=dataclasses.replace(config.eval, datasets=datasets)
    )


def current_dataset_name(stored: str) -> str:
    """A stored text with current data set names: ``table/NAME`` was ``manifest/NAME`` in 0.1.

    >>> current_dataset_name("manifest/shop/query in manifest/shop/gallery")
    'table/shop/query in table/shop/gallery'
    """
    return re.sub(r"(^| )manifest/", r"\1table/", stored)


# Poolings by maps that the main branch predicts.
PREDICTED = ("foreground", "parts")
# A condition on several options, the option that its error names, and what that error says.
_Relation = tuple[bool, str, str]


def _image_checks(config: Config) -> Iterator[_Relation]:
    backbone, data = BACKBONES[config.model.backbone], config.data
    for side, size in (("height", (data.height, 0)), ("width", (0, data.width))):
        try:
            backbone.map_shape(*size)
        except ValueError as error:
            yield False, f"data.{side}", f"{error} ({config.model.backbone})"
    message = f"{backbone.channels} channels cannot be divided among {NUM_PARTS} parts"
    yield backbone.channels % NUM_PARTS == 0, "model.backbone", message
    droppable = not config.model.drop_path or hasattr(backbone, "drop_path")
    yield droppable, "model.drop_path", f"must be 0 with {config.model.backbone}"
    pools = config.model.pooling != "cls" or hasattr(backbone, "with_class_token")
    yield pools, "model.pooling", f"{config.model.backbone} has no class token"
    half = min(data.height, data.width) // 2
    message = f"must be at most half the shorter side, {half}, or crops show little but black"
    yield data.augment.pad <= half, "data.augment.pad", message


def _loss_checks(config: Config) -> Iterator[_Relation]:
    loss, variant = config.loss, config.loss.interaction_variant
    message = (
        f"must be below config.train.epochs, {config.train.epochs:g}, or nothing is ever "
        "distilled; for that, set loss.feature_kd and loss.logit_kd to 0"
    )
    yield not config.distils or loss.kd_start < config.train.epochs, "loss.kd_start", message
    weights = [loss.identity, loss.triplet]
    if config.trains_with_poses:
        weights += [loss.alignment, loss.semantic, loss.feature_kd, loss.logit_kd, loss.interaction]
        weights += [loss.maps] * (config.model.pooling in PREDICTED)
    message = "no loss has a weight above 0, so nothing would be trained"
    yield any(weights), "loss.identity", message
    weighted = variant in ("cross_classifier", "cross_triplet")
    wanted = "must be above 0" if weighted else "must be 0"
    message = f"{wanted} with config.loss.interaction_variant={variant}"
    yield (loss.interaction > 0) == weighted, "loss.interaction", message
    message = "needs config.model.pose_branches=True"
    yield config.model.pose_branches or variant == "off", "loss.interaction_variant", message


def _optim_checks(config: Config) -> Iterator[_Relation]:
    optim, train = config.optim, config.train
    identities, parts = config.data.identities_per_batch, train.accumulation
    message = f"must divide data.identities_per_batch, {identities}, and leave 2 for each part"
    fits = parts > 0 and identities % parts == 0 and identities // parts >= 2
    yield fits, "train.accumulation", message
    message = f"must be in [0, config.train.epochs), that is below {train.epochs}"
    yield optim.warmup_epochs < train.epochs, "optim.warmup_epochs", message
    if optim.schedule == "step":
        times = (optim.warmup_epochs, *optim.milestones)
        rising = all(before < after for before, after in itertools.pairwise(times))
        yield rising, "optim.milestones", "must rise and come after the warm-up"


def _eval_checks(config: Config) -> Iterator[_Relation]:
    evaluation, names = config.eval, config.eval.embeddings
    once = len(set(evaluation.datasets)) == len(evaluation.datasets)
    yield once, "eval.datasets", "must not name a data set twice"
    yield names[:1] == ("main",), "eval.embeddings", "must begin with main"
    yield len(set(names)) == len(names), "eval.embeddings", "must not name an embedding twice"
    message = "only main is trained without config.model.pose_branches or without poses"
    yield config.trains_with_poses or names == ("main",), "eval.embeddings", message
    bins = evaluation.occlusion_bins
    rising = all(low < high for low, high in itertools.pairwise(bins))
    yield rising, "eval.occlusion_bins", "must rise"
    message = "must be in [0, 1]; divide percentages by 100"
    yield all(0 <= edge <= 1 for edge in bins), "eval.occlusion_bins", message


def oddities(config: Config) -> list[str]:
    """What a training by this configuration would never reach, one line each."""
    loss, optim, epochs = config.loss, config.optim, config.train.epochs
    found = []
    if config.distils and (end := loss.kd_start + loss.kd_ramp) > epochs:
        found.append(
            f"config.loss.kd_ramp = {loss.kd_ramp:g}: distillation would reach its weight at epoch "
            f"{end:g}, after the last one (config.train.epochs = {epochs:g})"
        )
    if config.model.pooling in PREDICTED and not config.trains_with_poses:
        found.append(
            f"config.model.pooling = {config.model.pooling!r}: without poses nothing teaches the "
            "main branch the maps that it pools with; a baseline pools by 'gap'"
        )
    late = [f"{time:g}" for time in optim.milestones if time >= epochs]
    if optim.schedule == "step" and late:
        found.append(
            f"config.optim.milestones = {optim.milestones}: training ends before epoch "
            f"{', '.join(late)} (config.train.epochs = {epochs:g}), so the learning rate does not "
            "fall there"
        )
    return found


def _require(condition: bool, option: str, value: Any, message: str) -> None:
    if not condition:
        raise ConfigError(f"config.{option} = {value!r}: {message}")
