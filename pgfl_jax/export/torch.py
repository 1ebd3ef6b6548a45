"""PyTorch: weights in torchvision's names, the network's source, and a ``torch.export`` program."""

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import safetensors.numpy

from pgfl_jax.embedder import Embedder
from pgfl_jax.errors import UserError
from pgfl_jax.export.contract import Contract
from pgfl_jax.export.onnx_file import Graph
from pgfl_jax.pretrained import to_state_dict

WEIGHTS, SOURCE, PROGRAM = "model.safetensors", "model.py", "model.pt2"


def write_torch(embedder: Embedder, contract: Contract, folder: Path) -> None:
    """Write ``model.safetensors``, ``model.py`` and ``model.pt2``.

    The weights have torchvision's names for the trunk, and ``main_neck`` and ``main_pooling``
    beside it. ``model.load(folder)`` makes a network of them. The program, for any size of the
    batch, has them inside.

    Args:
        embedder: of the run.
        contract: the input.
        folder: exists.

    Raises:
        UserError: the backbone has no twin in PyTorch.
    """
    import torch

    from pgfl_jax.export import torch_model

    backbone, known = embedder.config.model.backbone, torch_model.BACKBONES
    if backbone not in known:
        raise UserError(
            f"config.model.backbone = {backbone!r}: has no twin in PyTorch, as {', '.join(known)} "
            "have; leave out the format torch"
        )
    weights = to_state_dict(embedder.variables, num_identities=1)  # there are no classifiers
    safetensors.numpy.save_file(
        {name.removeprefix("trunk."): value for name, value in weights.items()},
        folder / WEIGHTS,
        metadata={"format": "pt", "embedder": json.dumps(settings(embedder, contract))},
    )
    shutil.copyfile(torch_model.__file__, folder / SOURCE)
    torch.export.save(trace(folder), folder / PROGRAM)


def settings(embedder: Embedder, contract: Contract) -> dict[str, object]:
    """The arguments of :class:`pgfl_jax.export.torch_model.Embedder`."""
    data, network = embedder.config.data, embedder.config.model
    return {
        "backbone": network.backbone,
        "pooling": network.pooling,
        "precision": network.dtype,
        "height": data.height,
        "width": data.width,
        "mean": data.mean,
        "std": data.std,
        **dataclasses.asdict(contract),
    }


def trace(folder: Path) -> Any:
    """The ``torch.export`` program of an artifact's weights, for any size of the batch."""
    import torch

    from pgfl_jax.export import torch_model

    network = torch_model.load(folder)
    # Of two pictures: torch.export takes a batch of one for a constant.
    example = torch.zeros((2, *network.row_shape), dtype=network.input_dtype)
    shapes = {"images": {0: torch.export.Dim("batch", min=1)}}
    return torch.export.export(network, (example,), dynamic_shapes=shapes)


def read_program(path: Path) -> Graph:
    """The graph of ``model.pt2``, or of the network that ``model.safetensors`` becomes."""
    import torch

    program = torch.export.load(path) if path.name == PROGRAM else trace(path.parent)
    signature = program.graph_signature
    stored = [*program.state_dict.values(), *program.constants.values()]
    numbers = sum(value.numel() for value in stored if value.is_floating_point())
    kernels = multiply_adds = 0
    for node in program.graph.nodes:
        if node.target in (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default):
            weights = math.prod(node.args[1].meta["val"].shape)
            kernels += weights
            result = node.meta["val"].shape
            is_map = node.target == torch.ops.aten.conv2d.default
            multiply_adds += weights * math.prod(result[2:] if is_map else result[1:-1])
    return Graph(tuple(signature.user_inputs), kernels, numbers - kernels, multiply_adds)
