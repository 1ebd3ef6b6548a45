"""What a configuration builds: the network, its optimizer, the length of the training."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from jaxtyping import Array

from pgfl_jax.checksums import sha256
from pgfl_jax.config import NUM_PARTS, Config
from pgfl_jax.distributed.sharding import replicated
from pgfl_jax.models import PGFL
from pgfl_jax.models.backbones import BACKBONES
from pgfl_jax.optim import learning_rate_schedule, make_optimizer
from pgfl_jax.pretrained import Report, load_backbone
from pgfl_jax.train_state import Average, TrainState


@dataclasses.dataclass(frozen=True, eq=False)
class Pretrained:
    """The weights of ``config.model.pretrained``.

    Attributes:
        arrays: the values that replace random ones, by path (``params/trunk/…``).
        report: what became of each array of the file.
        sha256: digest of the file, in hexadecimal.
    """

    arrays: Mapping[str, np.ndarray]
    report: Report
    sha256: str


def read_pretrained(config: Config) -> Pretrained | None:
    """Read and hash the file of ``config.model.pretrained``; None if the option is empty.

    The training set need not be known.

    Raises:
        PretrainedError: the file cannot be used.
    """
    path = config.model.pretrained
    if not path:
        return None
    state = Experiment.without_data(config).abstract_state()
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    loaded, report = load_backbone(path, variables, map_shape=config.map_shape)
    flat = flatten_dict(loaded, sep="/")
    arrays = {name: value for name, value in flat.items() if isinstance(value, np.ndarray)}
    return Pretrained(arrays, report, sha256(Path(path)))


def make_model(config: Config, *, num_identities: int) -> PGFL:
    """The network of a configuration; at test time the number of identities does not matter."""
    return PGFL(
        num_identities=num_identities,
        backbone=config.model.backbone,
        pooling=config.model.pooling,
        pose_branches=config.model.pose_branches,
        interaction=config.loss.interaction_variant,
        dtype=jnp.bfloat16 if config.model.dtype == "bfloat16" else None,
        remat=config.model.remat,
        drop_path=config.model.drop_path,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """The constant parts of a training.

    Attributes:
        config: the configuration.
        model: the network.
        optimizer: built once; a rebuilt one would compile the step again.
        schedule: from the step to the learning rate.
        steps_per_epoch: batches that hold as many images as the training set; may be fractional.
        num_steps: length of the training.
    """

    config: Config
    model: PGFL
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    steps_per_epoch: float
    num_steps: int

    @classmethod
    def create(cls, config: Config, *, num_identities: int, num_images: int) -> "Experiment":
        """Build the parts for a training set of ``num_images`` of ``num_identities`` people."""
        model = make_model(config, num_identities=num_identities)
        steps_per_epoch = num_images / config.data.batch_size
        num_steps = max(1, round(config.train.epochs * steps_per_epoch))
        schedule = learning_rate_schedule(
            config.optim,
            batch_size=config.data.batch_size,
            num_steps=num_steps,
            steps_per_epoch=steps_per_epoch,
        )
        layers = BACKBONES[config.model.backbone].layers
        optimizer = make_optimizer(config.optim, schedule, layers)
        return cls(config, model, optimizer, schedule, steps_per_epoch, num_steps)

    @classmethod
    def without_data(cls, config: Config) -> "Experiment":
        """The parts for uses that need no classifier, whose size only the training set gives."""
        return cls.create(config, num_identities=1, num_images=config.data.batch_size)

    def init_state(self, mesh: Mesh, pretrained: Pretrained | None = None) -> TrainState:
        """A fresh state on the mesh, drawn from the config's seed: the same on any mesh.

        Args:
            mesh: the devices.
            pretrained: what :func:`read_pretrained` returned; None: read now, if the configuration
                names a file.

        Raises:
            PretrainedError: that file cannot be used.
        """
        pretrained = pretrained or read_pretrained(self.config)
        init = jax.jit(
            lambda arrays: nn.unbox(self._init(arrays)),
            in_shardings=replicated(mesh),
            out_shardings=self.state_shardings(mesh),
        )
        return init(pretrained.arrays if pretrained else {})

    def abstract_state(self) -> TrainState:
        """Shapes and dtypes of the state, without computing it."""
        return nn.unbox(self._boxed_state)

    def state_shardings(self, mesh: Mesh) -> TrainState:
        """Where each array of the state lives.

        Classifiers, their averages and their optimizer state are split by identity over ``model``,
        as :class:`pgfl_jax.models.classifier.Classifier` says. Everything else is replicated.
        """
        return nn.get_sharding(self._boxed_state, mesh)

    @functools.cached_property
    def _boxed_state(self) -> TrainState:
        """The abstract state, where each split array is in a box with its partitioning."""
        return jax.eval_shape(self._init, {})

    def _init(self, pretrained: Mapping[str, Array]) -> TrainState:
        data = self.config.data
        variables = self.model.init(
            jax.random.key(self.config.seed),
            jnp.zeros((2, data.height, data.width, 3)),
            jnp.ones((2, *self.config.map_shape, NUM_PARTS)),
            jnp.ones((2, NUM_PARTS)),
            train=True,
        )
        flat = flatten_dict(variables, sep="/")
        flat |= {path: value.astype(flat[path].dtype) for path, value in pretrained.items()}
        variables = unflatten_dict(flat, sep="/")
        params, batch_stats = variables["params"], variables["batch_stats"]
        average = Average(params, batch_stats) if self.config.optim.ema_decay else None
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=batch_stats,
            opt_state=self.optimizer.init(params),
            average=average,
        )
