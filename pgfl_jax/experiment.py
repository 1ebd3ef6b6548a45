"""What a configuration builds: the network, its optimizer, the length of the training."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from jaxtyping import Array

from pgfl_jax.config import NUM_PARTS, Config
from pgfl_jax.distributed.sharding import replicated, state_shardings
from pgfl_jax.models import PGFL
from pgfl_jax.optim import learning_rate_schedule, make_optimizer
from pgfl_jax.pretrained import Report, load_backbone
from pgfl_jax.train_state import Average, TrainState


def examine_pretrained(config: Config) -> Report:
    """Read the file of ``config.model.pretrained``, before anything is known of the data.

    Raises:
        PretrainedError: it cannot be used.
    """
    # The classifiers, whose size is that of the training set, take no part.
    experiment = Experiment.create(config, num_identities=1, num_images=config.data.batch_size)
    return experiment.read_pretrained()[1]


def make_model(config: Config, *, num_identities: int) -> PGFL:
    """The network of a configuration; test time takes any number of identities."""
    return PGFL(
        num_identities=num_identities,
        backbone=config.model.backbone,
        pooling=config.model.pooling,
        pose_branches=config.model.pose_branches,
        interaction=config.loss.interaction_variant,
        dtype=jnp.bfloat16 if config.model.dtype == "bfloat16" else None,
        remat=config.model.remat,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """The constant parts of a training.

    Attributes:
        config: the configuration.
        model: the network.
        optimizer: built once; a rebuilt one would compile the step anew.
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
        """Build the parts for a training set of ``num_images`` of ``num_identities``."""
        model = make_model(config, num_identities=num_identities)
        steps_per_epoch = num_images / config.data.batch_size
        num_steps = max(1, round(config.train.epochs * steps_per_epoch))
        schedule = learning_rate_schedule(
            config.optim,
            batch_size=config.data.batch_size,
            num_steps=num_steps,
            steps_per_epoch=steps_per_epoch,
        )
        optimizer = make_optimizer(config.optim, schedule)
        return cls(config, model, optimizer, schedule, steps_per_epoch, num_steps)

    def init_state(self, mesh: Mesh) -> TrainState:
        """A fresh state on the mesh, drawn from the config's seed: the same on any mesh.

        The trunk is that of ``config.model.pretrained``, if any.

        Raises:
            PretrainedError: that file cannot be used.
        """
        shardings = state_shardings(self.abstract_state(), mesh)
        taken = self.read_pretrained()[0] if self.config.model.pretrained else {}
        init = jax.jit(self._init, in_shardings=replicated(mesh), out_shardings=shardings)
        return init(taken)

    def abstract_state(self) -> TrainState:
        """Shapes and dtypes of the state, without computing it."""
        return jax.eval_shape(self._init, {})

    def read_pretrained(self) -> tuple[dict[str, np.ndarray], Report]:
        """What ``config.model.pretrained`` puts in the place of random values, by path.

        Raises:
            PretrainedError: that file cannot be used.
        """
        abstract = self.abstract_state()
        variables = {"params": abstract.params, "batch_stats": abstract.batch_stats}
        loaded, report = load_backbone(self.config.model.pretrained, variables)
        flat = flatten_dict(loaded, sep="/")
        return {path: x for path, x in flat.items() if isinstance(x, np.ndarray)}, report

    def _init(self, taken: Mapping[str, Array]) -> TrainState:
        data = self.config.data
        variables = self.model.init(
            jax.random.key(self.config.seed),
            jnp.zeros((2, data.height, data.width, 3)),
            jnp.ones((2, *self.config.map_shape, NUM_PARTS)),
            jnp.ones((2, NUM_PARTS)),
            train=True,
        )
        flat = flatten_dict(variables, sep="/")
        flat |= {path: x.astype(flat[path].dtype) for path, x in taken.items()}
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
