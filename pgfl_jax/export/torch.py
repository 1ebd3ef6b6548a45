"""PyTorch: weights in torchvision's names, the network's source, and a ``torch.export`` program."""

import dataclasses
import json
import shutil
from pathlib import Path
from types import ModuleType

import safetensors.numpy

from pgfl_jax.embedder import Embedder
from pgfl_jax.errors import UserError
from pgfl_jax.export.contract import Contract
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
        UserError: PyTorch is not installed, or has no such backbone.
    """
    model = _torch_model()
    if embedder.config.model.backbone not in model.BACKBONES:
        raise UserError(
            f"config.model.backbone = {embedder.config.model.backbone!r}: there is no such network "
            f"in PyTorch, only {', '.join(model.BACKBONES)}; leave out the format torch"
        )
    weights = to_state_dict(embedder.variables, num_identities=1)  # there are no classifiers
    safetensors.numpy.save_file(
        {name.removeprefix("trunk."): value for name, value in weights.items()},
        folder / WEIGHTS,
        metadata={"format": "pt", "embedder": json.dumps(settings(embedder, contract))},
    )
    shutil.copyfile(str(model.__file__), folder / SOURCE)
    _write_program(model, folder)


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


def _torch_model() -> ModuleType:
    try:
        from pgfl_jax.export import torch_model
    except ImportError as error:
        raise UserError(
            "the format torch needs PyTorch: pip install -c constraints.txt -e '.[export]'"
        ) from error
    return torch_model


def _write_program(model: ModuleType, folder: Path) -> None:
    """Trace what the artifact's own files make."""
    import torch

    network = model.load(folder)
    # Of two pictures: torch.export takes a batch of one for a constant.
    example = torch.zeros((2, *network.row_shape), dtype=network.input_dtype)
    shapes = {"images": {0: torch.export.Dim("batch", min=1)}}
    program = torch.export.export(network, (example,), dynamic_shapes=shapes)
    torch.export.save(program, folder / PROGRAM)
