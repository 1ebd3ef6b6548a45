"""One training step, or many, of both implementations, from the same weights on the same batches.

Both sides return NumPy arrays under PyTorch's names, with channels last. studies/pytorch/parity.py
judges the differences.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Float, Shaped

from configs import synthetic_tiny
from pgfl_jax.config import Config, parse_config
from pgfl_jax.distributed.sharding import make_mesh
from pgfl_jax.experiment import Experiment
from pgfl_jax.export import torch_model
from pgfl_jax.losses import mine_hardest
from pgfl_jax.models.backbones.resnet import BasicBlock, Bottleneck
from pgfl_jax.models.backbones.vit import Block
from pgfl_jax.models.batch_norm import BatchNorm
from pgfl_jax.network_input import network_input
from pgfl_jax.pretrained import to_state_dict, torch_name
from pgfl_jax.train_state import Average, TrainState
from pgfl_jax.train_step import loss_and_gradients, make_train_step, random_keys
from studies.pytorch import losses, models
from studies.pytorch.train_step import Training, backward, to_tensors

Arrays = dict[str, np.ndarray]
Batch = Mapping[str, np.ndarray]


class Step(NamedTuple):
    """The results of one step, by name.

    Attributes:
        outputs: feature map, embeddings, BNNecks and logits.
        layers: outputs of every block of the trunk, and of every BatchNorm inside, after its ReLU,
            in order.
        triplets: mined positives and negatives (B, 2); -1 where an anchor has none.
        terms: every loss term.
        gradients: the gradient of every parameter.
        statistics: running statistics after the step.
        parameters: every parameter after the first step of a fresh optimizer.
        updates: what that step added to the parameters.
    """

    outputs: Arrays
    layers: Arrays
    triplets: Arrays
    terms: Arrays
    gradients: Arrays
    statistics: Arrays
    parameters: Arrays
    updates: Arrays


def tiny_config(changes: Mapping[str, Any]) -> Config:
    """The tiny configuration with ``changes``, given by dotted names."""
    values = synthetic_tiny.get_config()
    values.update_from_flattened_dict(changes)
    return parse_config(values)


def to_arrays(variables: Mapping[str, Any], num_identities: int) -> Arrays:
    """Flax variables, or their gradients, with PyTorch's names and layouts.

    BatchNorm's batch counters, which only PyTorch has, are left out.
    """
    arrays = to_state_dict(variables, num_identities)
    return {name: x for name, x in arrays.items() if not name.endswith("num_batches_tracked")}


def fresh_twin(experiment: Experiment) -> models.PGFL:
    """The PyTorch network of an experiment, with its own initial weights."""
    config, network = experiment.config, experiment.model
    return models.PGFL(
        network.num_identities,
        network.backbone,
        (config.data.height, config.data.width),
        pooling=network.pooling,
        pose_branches=network.pose_branches,
        interaction=network.interaction,
        dtype=torch.bfloat16 if config.model.dtype == "bfloat16" else None,
    )


def make_twin(experiment: Experiment, variables: Mapping[str, Any]) -> models.PGFL:
    """The PyTorch network with the Flax network's variables."""
    arrays = to_state_dict(variables, experiment.model.num_identities)
    state = {name: torch.tensor(value) for name, value in arrays.items()}
    twin = fresh_twin(experiment).to(state["main_neck.weight"].dtype)
    twin.load_state_dict(state)
    return twin


def initial_state(experiment: Experiment, variables: Mapping[str, Any]) -> TrainState:
    """The state of step 0, sharded as after a step, so that the second step is not recompiled."""
    params, batch_stats = jax.tree.map(jnp.array, (variables["params"], variables["batch_stats"]))
    average = None
    if experiment.config.optim.ema_decay:
        average = jax.tree.map(jnp.array, Average(params, batch_stats))
    step, moments = jnp.zeros((), jnp.int32), experiment.optimizer.init(params)
    state = TrainState(step, params, batch_stats, moments, average)
    return jax.device_put(state, experiment.state_shardings(make_mesh(jax.devices()[:1])))


def flax_step(
    experiment: Experiment, variables: Mapping[str, Any], batch: Batch, *, step: int = 0
) -> Step:
    """One step by pgfl_jax, with the warm-ups as at step number ``step``."""
    with jax.enable_x64(batch["images"].dtype == np.float64):
        state = initial_state(experiment, variables)
        state = dataclasses.replace(state, step=jnp.asarray(step, jnp.int32))
        found = jax.device_get(_flax_step(experiment, state, dict(batch)))
    outputs, captured, triplets, terms, gradients, statistics, updates = found
    layers = {
        torch_name(tuple(key.key for key in keys[:-2])): value
        for keys, value in jax.tree_util.tree_leaves_with_path(captured)
    }
    identities = experiment.model.num_identities
    named = {
        name: value[:, :identities] if name.endswith("logits") else value
        for name, value in _named_outputs(outputs).items()
    }
    return Step(
        named,
        _without_last_norms(layers),
        triplets,
        terms,
        to_arrays({"params": gradients}, identities),
        to_arrays({"batch_stats": statistics}, identities),
        to_arrays({"params": jax.tree.map(np.add, variables["params"], updates)}, identities),
        to_arrays({"params": updates}, identities),
    )


@functools.partial(jax.jit, static_argnums=0)
def _flax_step(experiment: Experiment, state: TrainState, batch: Mapping[str, jax.Array]) -> tuple:
    gradients, statistics, terms = loss_and_gradients(experiment, state, batch)
    updates, _ = experiment.optimizer.update(gradients, state.opt_state, state.params)
    # The compiler merges this forward pass with the one above.
    outputs, captured = experiment.model.apply(
        {"params": state.params, "batch_stats": state.batch_stats},
        batch["images"],
        batch["part_maps"],
        batch["visibility"],
        train=True,
        mutable=["batch_stats", "intermediates"],
        rngs=random_keys(experiment, state.step),
        capture_intermediates=lambda module, _: isinstance(
            module, BatchNorm | BasicBlock | Bottleneck | Block
        ),
    )
    triplets = {}
    for name, anchors, candidates, mask in _mined(outputs, batch["visibility"]):
        mined = mine_hardest(anchors, candidates, batch["labels"], mask)
        pair = jnp.stack([mined.positive, mined.negative], 1)
        triplets[name] = jnp.where(mined.valid[:, None], pair, -1)
    captured = captured["intermediates"]
    return outputs, captured, triplets, terms, gradients, statistics, updates


def _mined(outputs: Any, visibility: Any) -> Iterator[tuple[str, Any, Any, Any]]:
    """The embeddings to mine, of either framework: name, anchors, candidates, mask."""
    main = outputs.main.embedding
    yield "main", main, main, None
    has_pose = (visibility > 0).any(-1) * 1.0
    for name in ("foreground", "parts"):
        branch = getattr(outputs, name)
        if branch is not None:
            mask = visibility if name == "parts" else has_pose
            yield name, branch.embedding, branch.embedding, mask
            yield f"main to {name}", main, branch.embedding, has_pose


def _named_outputs(outputs: Any) -> dict[str, Any]:
    """The outputs of all branches, of either framework, by name."""
    named = {"features": outputs.features}
    for name in ("main", "foreground", "parts"):
        branch = getattr(outputs, name)
        if branch is not None:
            named |= {f"{name}_{field}": getattr(branch, field) for field in branch._fields}
    if outputs.map_logits is not None:
        named["predicted_maps"] = outputs.map_logits
    if outputs.cross_logits is not None:
        named |= {f"cross_{i}_logits": value for i, value in enumerate(outputs.cross_logits)}
    return named


def _without_last_norms(layers: Arrays) -> Arrays:
    """Without each block's last BatchNorm, whose output is that of the block in ours."""

    def is_last(name: str) -> bool:
        block, _, layer = name.rpartition(".")
        return layer == "bn3" or (layer == "bn2" and f"{block}.bn3" not in layers)

    return {name: value for name, value in layers.items() if not is_last(name)}


def twin_step(
    experiment: Experiment, variables: Mapping[str, Any], batch: Batch, *, step: int = 0
) -> Step:
    """One step by PyTorch; the same arguments and results as :func:`flax_step`."""
    twin = make_twin(experiment, variables)
    layers: Arrays = {}

    def keep(name: str, output: torch.Tensor) -> None:
        # Ours leave only after the ReLU.
        hidden = name.rpartition(".")[2] in ("bn1", "bn2")
        layers[name] = _channels_last(output.relu() if hidden else output)

    blocks = torch_model.BasicBlock | torch_model.Bottleneck | torch_model.Block
    for name, module in twin.named_modules():
        if isinstance(module, torch_model.BatchNorm | blocks):
            module.register_forward_hook(lambda _, __, output, name=name: keep(name, output))
    dtype = torch.float64 if batch["images"].dtype == np.float64 else torch.float32
    tensors = to_tensors(batch, dtype)
    config = experiment.config
    epoch = step / experiment.steps_per_epoch
    outputs, terms = backward(twin, tensors, config.loss, epoch=epoch)
    gradients = {name: value.grad.numpy().copy() for name, value in twin.named_parameters()}
    statistics = _statistics(twin.state_dict())
    updates = _updates(experiment, twin)
    triplets = {}
    for name, anchors, candidates, mask in _mined(outputs, tensors["visibility"]):
        mined = losses.mine_hardest(anchors, candidates, tensors["labels"], mask)
        positive, negative, valid = mined
        pair = torch.stack([positive, negative], 1)
        triplets[name] = torch.where(valid[:, None], pair, -1).numpy()
    return Step(
        {
            name: _channels_last(value) if value.ndim == 4 else value.detach().numpy()
            for name, value in _named_outputs(outputs).items()
        },
        _without_last_norms(layers),
        triplets,
        {name: value.numpy() for name, value in terms.items()},
        gradients,
        statistics,
        {name: value.detach().numpy() for name, value in twin.named_parameters()},
        updates,
    )


def _updates(experiment: Experiment, twin: models.PGFL) -> Arrays:
    """Take the first step of a fresh optimizer; return what it adds to every parameter."""
    before = {name: value.detach().clone() for name, value in twin.named_parameters()}
    Training(experiment.config, twin, steps_per_epoch=experiment.steps_per_epoch).update()
    return {
        name: (value.detach() - before[name]).numpy() for name, value in twin.named_parameters()
    }


def twin_updates(experiment: Experiment, variables: Mapping[str, Any], gradients: Arrays) -> Arrays:
    """What the first step of PyTorch's optimizer adds to every parameter, given gradients."""
    twin = make_twin(experiment, variables)
    for name, value in twin.named_parameters():
        value.grad = torch.tensor(gradients[name])
    return _updates(experiment, twin)


def _channels_last(maps: Float[torch.Tensor, "batch ..."]) -> Float[np.ndarray, "batch ..."]:
    """Maps (N, C, h, w) as (N, h, w, C); tokens (N, tokens, C) as they are."""
    maps = maps.detach()
    maps = maps.permute(0, 2, 3, 1) if maps.ndim == 4 else maps
    return maps.to(torch.promote_types(maps.dtype, torch.float32)).numpy()


def _statistics(state: Mapping[str, torch.Tensor]) -> Arrays:
    return {name: value.numpy() for name, value in state.items() if "running" in name}


class Moment(NamedTuple):
    """Loss terms after a step, and how far all variables and averages are from the start."""

    terms: Arrays
    parameters: Arrays
    statistics: Arrays
    average: Arrays


def flax_training(
    experiment: Experiment, variables: Mapping[str, Any], batches: list[Batch]
) -> Iterator[Moment]:
    """Train with pgfl_jax's own compiled step; yields after every step."""
    with jax.enable_x64(batches[0]["images"].dtype == np.float64):
        step = make_train_step(experiment, make_mesh(jax.devices()[:1]))
        state = initial_state(experiment, variables)
    start = to_arrays(variables, experiment.model.num_identities)
    for batch in batches:
        with jax.enable_x64(batch["images"].dtype == np.float64):
            state, terms = step(state, dict(batch))
            state_, terms = jax.device_get((state, terms))
        now = {"params": state_.params, "batch_stats": state_.batch_stats}
        arrays = to_arrays(now, experiment.model.num_identities)
        average = {}
        if state_.average is not None:
            trees = {"params": state_.average.params, "batch_stats": state_.average.batch_stats}
            average = to_arrays(trees, experiment.model.num_identities)
        yield _moment(terms, arrays, average, start)


def twin_training(
    experiment: Experiment, variables: Mapping[str, Any], batches: list[Batch]
) -> Iterator[Moment]:
    """Train with PyTorch; yields after every step."""
    twin = make_twin(experiment, variables)
    training = Training(experiment.config, twin, steps_per_epoch=experiment.steps_per_epoch)
    start = to_arrays(variables, experiment.model.num_identities)
    dtype = torch.float64 if batches[0]["images"].dtype == np.float64 else torch.float32
    for batch in batches:
        terms = training.train_step(to_tensors(batch, dtype))
        arrays = {name: value.numpy() for name, value in twin.state_dict().items()}
        average = training.average.state if training.average else {}
        yield _moment(
            {name: value.numpy() for name, value in terms.items()},
            {name: arrays[name] for name in start},
            {name: value.numpy() for name, value in average.items()},
            start,
        )


def _moment(terms: Arrays, arrays: Arrays, average: Arrays, start: Arrays) -> Moment:
    moved = {name: value - start[name] for name, value in arrays.items()}
    return Moment(
        dict(terms),
        {name: value for name, value in moved.items() if "running" not in name},
        {name: value for name, value in moved.items() if "running" in name},
        {name: value - start[name] for name, value in average.items()},
    )


def relative(found: Shaped[np.ndarray, "*shape"], expected: Shaped[np.ndarray, "*shape"]) -> float:
    """‖found − expected‖ / ‖expected‖; 0 if both are 0, infinite if only ``expected`` is.

    >>> round(relative(np.array([3.0, 4.1]), np.array([3.0, 4.0])), 6)
    0.02

    Raises:
        ValueError: the shapes differ.
    """
    found, expected = (np.asarray(x, np.float64).ravel() for x in (found, expected))
    if found.shape != expected.shape:
        raise ValueError(f"shapes differ: {found.shape} and {expected.shape}")
    difference, size = np.linalg.norm(found - expected), np.linalg.norm(expected)
    if size == 0:
        return 0.0 if difference == 0 else math.inf
    return float(difference / size)


def differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, float]:
    """:func:`relative` by name, in the order of ``expected``.

    Raises:
        ValueError: the names or the shapes differ.
    """
    if found.keys() != expected.keys():
        raise ValueError(f"names differ: {sorted(found.keys() ^ expected.keys())}")
    return {name: relative(found[name], value) for name, value in expected.items()}


def real_batches(config: Config, count: int) -> list[dict[str, np.ndarray]]:
    """Batches of the input pipeline in float64; the first image of each loses its pose."""
    from input_pipeline.from_config import training_data  # imports TensorFlow

    found = []
    for batch in itertools.islice(training_data(config).batches(0), count):
        batch = {**batch, "images": np.asarray(network_input(batch, config.data))}
        del batch["erased"]
        batch = {
            name: values if name == "labels" else values.astype(np.float64)
            for name, values in batch.items()
        }
        batch["part_maps"][0], batch["visibility"][0] = 0, 0
        found.append(batch)
    return found


def cast(batch: Batch, dtype: Any) -> dict[str, np.ndarray]:
    """Convert a batch to another precision; labels are unchanged."""
    return {k: v if k == "labels" else v.astype(dtype) for k, v in batch.items()}
