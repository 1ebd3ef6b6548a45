"""Optimizers, learning-rate schedules, clipping and running averages in PyTorch.

Where PyTorch and Optax differ, the docstring says so, and the code follows Optax, which
pgfl_jax/optim.py uses.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from pgfl_jax.config import OptimConfig


def learning_rate_schedule(
    config: OptimConfig, *, batch_size: int, num_steps: int, steps_per_epoch: float
) -> Callable[[int], float]:
    """The learning rate by step: linear warm-up, then milestones or half a cosine to zero."""
    ratio = batch_size / config.base_batch_size
    factor = {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[config.scaling]
    peak = config.learning_rate * factor
    warmup = round(config.warmup_epochs * steps_per_epoch)
    milestones = [round(epoch * steps_per_epoch) for epoch in config.milestones]

    def rate(step: int) -> float:
        if step < warmup:
            return peak * (config.warmup_factor + (1 - config.warmup_factor) * step / warmup)
        if config.schedule == "cosine":
            progress = min((step - warmup) / max(num_steps - warmup, 1), 1.0)
            return peak * (1 + math.cos(math.pi * progress)) / 2
        return peak * config.decay_factor ** bisect_right(milestones, step)

    return rate


def make_optimizer(config: OptimConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The configured optimizer; the caller sets the learning rate before each step.

    PyTorch and Optax agree here: Adam and SGD add the decay to the gradient, AdamW multiplies its
    decay by the rate, and the momentum is b ← m·b + g. Each parameter is a group: ``relative_rate``
    is that of its layer, by which the caller multiplies the rate, and ``is_kernel`` tells a layer's
    weights from biases, scales, position embeddings and tokens.
    """
    groups = _groups(config, model)
    if config.name == "adam":
        return torch.optim.Adam(groups)
    if config.name == "adamw":
        return torch.optim.AdamW(groups)
    if config.name == "sgd":
        return torch.optim.SGD(groups, momentum=config.momentum)
    if config.name == "lars":
        return LARS(groups, config.momentum, config.weight_decay, config.trust_coefficient)
    return LAMB(groups, config.weight_decay)


def _groups(config: OptimConfig, model: nn.Module) -> list[dict[str, Any]]:
    layer = re.compile(r"trunk\.(layer\d+\.\d+|blocks\.\d+|norm)\.")
    named = list(model.named_parameters())
    order = list(dict.fromkeys(m[1] for m in map(layer.match, [name for name, _ in named]) if m))
    groups = []
    for name, parameter in named:
        is_kernel = parameter.ndim >= 2 and not name.endswith(("cls_token", "pos_embed"))
        rate = config.head_rate
        if name.startswith("trunk."):
            found = layer.match(name)
            depth = 1 + order.index(found[1]) if found else 0
            rate = config.layer_decay ** (len(order) - depth)
        decays = is_kernel or config.decayed == "all"
        groups.append(
            {
                "params": [parameter],
                "weight_decay": config.weight_decay * decays,
                "relative_rate": rate,
                "is_kernel": is_kernel,
            }
        )
    return groups


def _trust_ratio(parameter: Tensor, update: Tensor, trust: float = 1.0) -> Tensor:
    """``trust`` · ‖parameter‖ / ‖update‖, or 1 where either norm is 0."""
    length, step = parameter.norm(), update.norm()
    return torch.where((length > 0) & (step > 0), trust * length / step, 1.0)


class LARS(torch.optim.Optimizer):
    """SGD whose step in each layer is scaled by ``trust`` · ‖w‖ / ‖g + decay·w‖.

    The momentum accumulates scaled steps, rate included. Scales and biases have no decay, and
    their steps are not scaled. Reference: Y. You et al., arXiv 1708.03888.
    """

    def __init__(self, groups: list[dict], momentum: float, decay: float, trust: float):
        """The parameter groups hold the learning rate."""
        super().__init__(groups, {"lr": 0.0})
        self.momentum, self.decay, self.trust = momentum, decay, trust

    @torch.no_grad()
    def step(self) -> None:
        """Take a step."""
        for group in self.param_groups:
            for parameter in group["params"]:
                update = parameter.grad
                if group["is_kernel"]:
                    update = update + self.decay * parameter
                    update = _trust_ratio(parameter, update, self.trust) * update
                state = self.state[parameter]
                velocity = state.get("velocity", 0) * self.momentum + group["lr"] * update
                state["velocity"] = velocity
                parameter -= velocity


class LAMB(torch.optim.Optimizer):
    """Adam with decoupled decay, whose step in each layer is as long as the layer's weights.

    Scales and biases do not decay. Reference: Y. You et al., ICLR 2020; ε = 1e-6 as in Optax.
    """

    def __init__(self, groups: list[dict], decay: float):
        """The parameter groups hold the learning rate."""
        super().__init__(groups, {"lr": 0.0})
        self.decay, self.betas, self.eps = decay, (0.9, 0.999), 1e-6

    @torch.no_grad()
    def step(self) -> None:
        """Take a step."""
        beta1, beta2 = self.betas
        for group in self.param_groups:
            for parameter in group["params"]:
                state, gradient = self.state[parameter], parameter.grad
                count = state["count"] = state.get("count", 0) + 1
                first = state["first"] = beta1 * state.get("first", 0) + (1 - beta1) * gradient
                second = beta2 * state.get("second", 0) + (1 - beta2) * gradient.square()
                state["second"] = second
                root = (second / (1 - beta2**count)).sqrt()
                update = first / (1 - beta1**count) / (root + self.eps)
                if group["is_kernel"]:
                    update = update + self.decay * parameter
                parameter -= group["lr"] * _trust_ratio(parameter, update) * update


def global_norm(tensors: Iterable[Tensor]) -> Tensor:
    """The Euclidean norm of all tensors together."""
    return torch.stack([tensor.norm() for tensor in tensors]).norm()


@torch.no_grad()
def clip_gradients(model: nn.Module, limit: float) -> None:
    """Shorten the gradient to ``limit`` if it is longer.

    ``torch.nn.utils.clip_grad_norm_`` divides by norm + 1e-6, which makes it slightly too short.
    """
    norm = global_norm(parameter.grad for parameter in model.parameters())
    if norm > limit:
        for parameter in model.parameters():
            parameter.grad *= limit / norm


class Average:
    """Exponential moving average of parameters and running statistics, a ← d·a + (1 − d)·x.

    At step t, from 0, d = min(decay, (1 + t) / (10 + t)).
    """

    def __init__(self, model: nn.Module, decay: float):
        """Start from the model's current state."""
        self.decay = decay
        self.state = {name: value.clone() for name, value in self._floats(model)}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the model after step ``step``."""
        rate = min(self.decay, (1 + step) / (10 + step))
        for name, value in self._floats(model):
            self.state[name] = rate * self.state[name] + (1 - rate) * value

    @staticmethod
    def _floats(model: nn.Module) -> list[tuple[str, Tensor]]:
        """Everything but BatchNorm's batch counters."""
        return [(name, x) for name, x in model.state_dict().items() if x.is_floating_point()]
