"""One training step in PyTorch, on a batch from the input pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from studies.pytorch.losses import total_loss
from studies.pytorch.models import PGFL, PGFLOutputs
from studies.pytorch.optim import (
    Average,
    clip_gradients,
    global_norm,
    learning_rate_schedule,
    make_optimizer,
)

if TYPE_CHECKING:
    from pgfl_jax.config import Config, LossConfig

Batch = Mapping[str, Tensor]
Terms = dict[str, Tensor]


def to_tensors(batch: Mapping[str, np.ndarray], dtype: torch.dtype = torch.float32) -> Batch:
    """Convert a batch to tensors: labels to int64, everything else to ``dtype``."""
    tensors = {name: torch.tensor(np.asarray(values)) for name, values in batch.items()}
    return {
        name: tensor.long() if name == "labels" else tensor.to(dtype)
        for name, tensor in tensors.items()
    }


def backward(
    model: PGFL, batch: Batch, config: LossConfig, *, epoch: float
) -> tuple[PGFLOutputs, Terms]:
    """Compute the gradients of the total loss and update the running statistics."""
    model.train()
    model.zero_grad()
    outputs = model(batch["images"], batch["part_maps"], batch["visibility"])
    total, terms = total_loss(outputs, batch, config, epoch=epoch)
    total.backward()
    return outputs, {name: value.detach() for name, value in terms.items()}


class Training:
    """A model, its optimizer, schedule and running average.

    Attributes:
        model: trained in place.
        optimizer: from ``torch.optim``, or one of ours.
        average: of parameters and running statistics; None if there is none.
        step: steps taken so far.
    """

    def __init__(self, config: Config, model: PGFL, *, steps_per_epoch: float):
        """Make the optimizer and its schedule."""
        self.config, self.model, self.step = config, model, 0
        self.optimizer = make_optimizer(config.optim, model)
        decay = config.optim.ema_decay
        self.average = Average(model, decay) if decay else None
        self.steps_per_epoch = steps_per_epoch
        self.schedule = learning_rate_schedule(
            config.optim,
            batch_size=config.data.batch_size,
            num_steps=max(1, round(config.train.epochs * self.steps_per_epoch)),
            steps_per_epoch=self.steps_per_epoch,
        )

    def train_step(self, batch: Batch) -> Terms:
        """Take one step; return the loss terms and ``gradient_norm``, measured before clipping."""
        epoch = self.step / self.steps_per_epoch
        _, terms = backward(self.model, batch, self.config.loss, epoch=epoch)
        norm = global_norm(parameter.grad for parameter in self.model.parameters())
        self.update()
        return terms | {"gradient_norm": norm}

    def update(self) -> None:
        """Clip the gradients, then update the parameters and their average."""
        if self.config.optim.clip_norm:
            clip_gradients(self.model, self.config.optim.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = group["relative_rate"] * self.schedule(self.step)
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.model, self.step)
        self.step += 1
