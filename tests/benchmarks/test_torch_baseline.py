import numpy as np
import pytest
import torch

from benchmarks import torch_baseline
from benchmarks.train_step import random_batch
from pgfl_jax.experiment import Experiment
from studies.pytorch.compare import fresh_twin, tiny_config
from studies.pytorch.losses import total_loss
from studies.pytorch.train_step import to_tensors


def _twin_loss(experiment, batch):
    tensors, twin = to_tensors(batch), fresh_twin(experiment).train()
    outputs = twin(tensors["images"], tensors["part_maps"], tensors["visibility"])
    total, _ = total_loss(outputs, tensors, experiment.config.loss, epoch=1e6)
    return total


@pytest.mark.parametrize("pose_branches", [False, True])
def test_the_yardstick_starts_from_the_loss_of_the_twin(monkeypatch, pose_branches):
    pooling = "parts" if pose_branches else "gap"
    changes = {"model.pose_branches": pose_branches, "model.pooling": pooling}
    experiment = Experiment.create(tiny_config(changes), num_identities=6, num_images=100)
    batch, losses = random_batch(experiment.config, seed=1), []
    backward = torch.Tensor.backward
    monkeypatch.setattr(
        torch.Tensor, "backward", lambda loss: (losses.append(loss.item()), backward(loss))
    )

    torch.manual_seed(0)
    torch_baseline.train(experiment, batch, mode=None)(1)

    torch.manual_seed(0)
    expected = _twin_loss(experiment, batch).item()
    np.testing.assert_allclose(losses, [expected], rtol=1e-5)
