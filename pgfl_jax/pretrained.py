"""Weights to and from PyTorch: its files, its names, its layout of arrays.

docs/pretrained.md says which files are read and what of them is kept.
"""

import dataclasses
import itertools
import os
import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError

from pgfl_jax.errors import UserError
from pgfl_jax.models.classifier import CLASS_MULTIPLE

Shape = tuple[int, ...]
StateDict = dict[str, np.ndarray]

# Where a state dict lies in a checkpoint that holds more.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "network", "net")
# What DataParallel, torch.compile and Lightning put before every name.
_ADDED = re.compile(r"((module|_orig_mod|model)\.)+")
# How names begin in each scheme, and how ours do; the first is the trunk's.
_SCHEMES = (
    {"trunk.": "trunk.", "main_neck.": "main_neck.", "main_pooling.": "main_pooling."},
    # fast-reid, and the names of its older versions
    {
        "backbone.": "trunk.",
        "heads.bottleneck.0.": "main_neck.",
        "heads.bnneck.": "main_neck.",
        "heads.pool_layer.p": "main_pooling.power",
    },
    {"base.": "trunk.", "bottleneck.": "main_neck."},  # strong-baseline
    {"": "trunk."},  # torchvision, timm, torchreid
)
# A layer of a trunk: one that the network lacks would change the features.
_TRUNK_LAYER = re.compile(r"trunk\.(conv1|bn1|layer\d+|NL_\d+)\.")
_COUNTER = "num_batches_tracked"

_INSTALL = "pip install -c constraints.txt -e '.[parity]'"
_NAMES = {
    "downsample_conv": "downsample.0",
    "downsample_bn": "downsample.1",
    "kernel": "weight",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
}
_RESNETS = {
    ("basic", 2, 2, 2, 2): "ResNet-18",
    ("basic", 3, 4, 6, 3): "ResNet-34",
    ("bottleneck", 3, 4, 6, 3): "ResNet-50",
    ("bottleneck", 3, 4, 23, 3): "ResNet-101",
    ("bottleneck", 3, 8, 36, 3): "ResNet-152",
}


class PretrainedError(UserError):
    """Weights that cannot be used; the message names the file and what is wrong with it."""


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of each array; BatchNorm's counters of batches are left out.

    Attributes:
        used: those of the file that were taken, by the file's names without what
            :func:`read_state_dict` takes off them.
        missing: those of the network that the file lacks, by our PyTorch names.
        left_over: those of the file that were not taken.
        reasons: why, for those that one might expect to be taken.
    """

    used: Mapping[str, Shape]
    missing: Mapping[str, Shape]
    left_over: Mapping[str, Shape]
    reasons: Mapping[str, str]

    def __str__(self) -> str:
        """One line of counts, with the first names of what is missing and left over."""
        left_over = [
            f"{_named(name, shape)}{f', {self.reasons[name]}' if name in self.reasons else ''}"
            for name, shape in self.left_over.items()
        ]
        missing = [_named(name, shape) for name, shape in self.missing.items()]
        return (
            f"{len(self.used)} arrays taken; {len(missing)} missing{_few(missing)}; "
            f"{len(left_over)} left over{_few(left_over)}"
        )


def load_backbone(path: Path | str, variables: Mapping[str, Any]) -> tuple[dict[str, Any], Report]:
    """Take the trunk from a file in any of the known naming schemes.

    Where the file has them and they fit, the scale and statistics of the main branch's BNNeck and
    the power of its GeM pooling are taken too; classifiers never are: they know other identities.

    Args:
        path: ``.safetensors``, or what ``torch.save`` writes.
        variables: ``params`` and ``batch_stats`` of :class:`pgfl_jax.models.PGFL`, arrays or
            their abstract shapes.

    Returns:
        The variables, with NumPy arrays of the file's dtype (float32 for half precision) in the
        place of those that were taken and the others as they were, and what was taken.
        ``missing`` speaks of the trunk, and is empty.

    Raises:
        PretrainedError: the file cannot be read, or holds another architecture.
    """
    tensors = read_state_dict(path)
    return _fill(tensors, _our_names(tensors, str(path)), variables, str(path), None)


def from_state_dict(
    state_dict: Mapping[str, Any], variables: Mapping[str, Any], num_identities: int
) -> tuple[dict[str, Any], Report]:
    """Take the whole network from a state dict with the names of :func:`to_state_dict`.

    Args:
        state_dict: arrays by name, as of :func:`read_state_dict`.
        variables: as of :func:`load_backbone`, of a network of N identities.
        num_identities: N.

    Returns:
        As :func:`load_backbone`; ``missing`` speaks of the whole network, and what is missing
        outside the trunk stays as it was.

    Raises:
        PretrainedError: an array of the trunk is missing, or one has another shape.
    """
    names = {name: name for name in state_dict}
    return _fill(dict(state_dict), names, variables, "the state dict", num_identities)


def to_state_dict(variables: Mapping[str, Any], num_identities: int) -> StateDict:
    """The whole network as a PyTorch state dict.

    Kernels become OIHW, and 1×1 and patch kernels convolutions again; classifiers (D, columns)
    become (N, D), without the columns that only fill up; all values stay as they are, bit for bit.
    The counters of batches, which nothing here counts, are 0.

    Args:
        variables: ``params`` and ``batch_stats`` of :class:`pgfl_jax.models.PGFL`.
        num_identities: N.

    Raises:
        ValueError: N identities have other columns than the classifiers here.
    """
    state_dict = {}
    for path, leaf in flatten_dict(variables).items():
        name = torch_name(path[1:])
        value = _to_torch(name, path[-1], np.asarray(leaf), num_identities)
        state_dict[name] = np.array(value, order="C")
        if name.startswith("trunk.") and name.endswith("running_var"):
            counter = name.removesuffix("running_var") + _COUNTER
            state_dict[counter] = np.zeros((), np.int64)
    return state_dict


def save_state_dict(path: Path | str, state_dict: Mapping[str, np.ndarray]) -> None:
    """Write ``.safetensors``, or ``.pth`` or ``.pt`` by PyTorch; whole or not at all.

    Raises:
        PretrainedError: another suffix, or PyTorch is not installed.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", ".pth", ".pt"):
        raise PretrainedError(f"{path}: must end in .safetensors, .pth or .pt")
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        if path.suffix == ".safetensors":
            # It writes the memory as it lies there.
            arrays = {name: np.asarray(value, order="C") for name, value in state_dict.items()}
            safetensors.numpy.save_file(arrays, beside)
        else:
            torch = _torch(path)
            # A copy, since PyTorch warns of arrays that it may not write to.
            tensors = {name: torch.from_numpy(value.copy()) for name, value in state_dict.items()}
            torch.save(tensors, beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def read_state_dict(path: Path | str) -> StateDict:
    """The arrays of a file, without the wrappers around them and around their names.

    Args:
        path: ``.safetensors``, or what ``torch.save`` writes (``.pth``, ``.pt``, ``.bin`` …).

    Returns:
        The arrays by name; half precision as float32.

    Raises:
        PretrainedError: there is no such file, it cannot be read, is damaged, holds no state dict,
            or an array of a kind that NumPy lacks, or one twice.
    """
    path = Path(path)
    if not path.is_file():
        raise PretrainedError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        try:
            tensors = safetensors.numpy.load_file(path)
        except OSError as error:
            raise PretrainedError(f"{path}: {error.strerror or error}") from error
        except SafetensorError as error:
            raise PretrainedError(f"{path}: damaged, or no safetensors file ({error})") from error
        except AttributeError as error:  # how it says so
            raise PretrainedError(f"{path}: holds a type that NumPy lacks ({error})") from error
    else:
        tensors = _read_torch(path)
    arrays: StateDict = {}
    for name, tensor in tensors.items():
        half = tensor.dtype.name in ("float16", "bfloat16")
        plain = name[match.end() :] if (match := _ADDED.match(name)) else name
        if plain in arrays:
            raise PretrainedError(f"{path}: holds {plain} twice, once as {name}")
        arrays[plain] = tensor.astype(np.float32) if half else tensor
    return arrays


def _read_torch(path: Path) -> StateDict:
    torch = _torch(path)
    try:
        # torchreid keeps scores as NumPy numbers: no more than a type and bytes.
        with torch.serialization.safe_globals(_numpy_numbers()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise PretrainedError(f"{path}: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        if refused := re.search(r"Unsupported (?:global: GLOBAL|class) (\S+)", str(error)):
            raise PretrainedError(
                f"{path}: holds more than arrays ({refused[1]}), which is not loaded since it "
                "could run any program; if you trust its source, save the state dict alone: "
                f"torch.save(torch.load('{path.name}', weights_only=False)['state_dict'], "
                "'weights.pth'), or .state_dict() of a whole model"
            ) from error
        raise PretrainedError(f"{path}: damaged, or no file of torch.save") from error
    except Exception as error:  # of any kind: it depends on where the file is damaged
        raise PretrainedError(f"{path}: damaged, or no file of torch.save") from error
    tensors = _unwrapped(content, torch.Tensor)
    if not tensors:
        found = ", ".join(map(str, itertools.islice(content, 5))) if _is_dict(content) else ""
        raise PretrainedError(f"{path}: holds no state dict, but {found or type(content).__name__}")
    half = (torch.float16, torch.bfloat16)  # NumPy has no bfloat16
    arrays = {}
    for name, value in tensors.items():
        try:
            arrays[name] = (value.float() if value.dtype in half else value).numpy(force=True)
        except TypeError as error:  # sparse, or of eight bits
            raise PretrainedError(f"{path}: {name} is no array for NumPy ({error})") from error
    return arrays


def _numpy_numbers() -> list[Any]:
    """What makes a NumPy number, under the names of NumPy 1 and 2."""
    scalar: Any = np.float32().__reduce__()[0]
    names = "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"
    types = [type(np.dtype(name)) for name in ("bool", "int32", "int64", "float32", "float64")]
    return [*((scalar, name) for name in names), np.dtype, *types]


def _torch(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise PretrainedError(
            f"{path}: PyTorch is needed for this kind of file: {_INSTALL} (not for .safetensors)"
        ) from error
    return torch


def _is_dict(content: Any) -> bool:
    return isinstance(content, Mapping)


def _unwrapped(content: Any, tensor: type) -> dict[str, Any]:
    """The tensors of the state dict in ``content``, none if there is no such thing."""
    if not _is_dict(content):
        return {}
    for name in _WRAPPERS:
        if _is_dict(content.get(name)):
            return _unwrapped(content[name], tensor)
    return {str(name): value for name, value in content.items() if isinstance(value, tensor)}


def _our_names(tensors: Iterable[str], source: str) -> dict[str, str]:
    """Our names of the arrays that a backbone is made of, by the file's."""
    names = list(tensors)
    for scheme in _SCHEMES:
        if f"{next(iter(scheme))}layer1.0.conv1.weight" in names:
            ours = {
                name: our + name.removeprefix(their)
                for their, our in scheme.items()
                for name in names
                if name.startswith(their)
            }
            return {
                name: our
                for name, our in ours.items()
                if not our.startswith("trunk.") or _TRUNK_LAYER.match(our)
            }
    raise PretrainedError(
        f"{source}: no ResNet in a known naming scheme (docs/pretrained.md); its first arrays are "
        f"{', '.join(names[:3])}"
    )


def _fill(
    tensors: StateDict,
    names: Mapping[str, str],
    variables: Mapping[str, Any],
    source: str,
    num_identities: int | None,
) -> tuple[dict[str, Any], Report]:
    """Put ``tensors`` in the place of the variables that ``names`` gives them.

    With ``num_identities`` the whole network is meant.
    """
    leaves, whole = flatten_dict(variables), num_identities is not None
    places = {torch_name(path[1:]): path for path in leaves}
    tensors = {name: value for name, value in tensors.items() if not name.endswith(_COUNTER)}
    ours = {names[name]: value for name, value in tensors.items() if name in names}
    wanted = {
        name: _to_torch(name, path[-1], np.zeros(leaves[path].shape, bool), num_identities).shape
        for name, path in places.items()
    }
    found = {name: value.shape for name, value in ours.items()}
    _check_trunk(found, wanted, source)
    used, left_over, reasons = {}, {}, {}
    for file_name, value in tensors.items():
        name = names.get(file_name, "")
        taken, reason = name in places, ""
        if name.endswith("_neck.bias"):
            # Ours has none, which is a bias of 0.
            taken = not value.any()
            reason = "not 0, and the BNNeck has no bias"
        elif taken and name == "main_pooling.power" and value.size == 1:
            leaves[places[name]] = value.reshape(())
        elif taken and value.shape != wanted[name]:
            taken, reason = False, f"the network has {wanted[name]}"
            if whole:
                raise PretrainedError(f"{source}: {name} is {value.shape}, but {reason}")
        elif taken:
            path = places[name]
            leaves[path] = _to_flax(name, path[-1], value, leaves[path].shape)
        if taken:
            used[file_name] = value.shape
        else:
            left_over[file_name] = value.shape
            if reason:
                reasons[file_name] = reason
    missing = {
        name: shape
        for name, shape in wanted.items()
        if name not in ours and (whole or name.startswith("trunk."))
    }
    return unflatten_dict(leaves), Report(used, missing, left_over, reasons)


def torch_name(path: tuple[str, ...]) -> str:
    """PyTorch's name of a module or a variable, ``("trunk", "layer1_0", …)``."""
    parts = (_NAMES.get(part, part) for part in path if part != "dense")
    return ".".join(re.sub(r"^(layer\d+)_", r"\1.", part) for part in parts)


def _to_torch(name: str, leaf: str, value: np.ndarray, num_identities: int | None) -> np.ndarray:
    """A view of a Flax array in PyTorch's layout; None: of classifiers with what fills them up."""
    if leaf != "kernel":
        return value
    if not name.startswith("trunk."):
        columns = value.shape[1]
        if num_identities is not None and not 0 <= columns - num_identities < CLASS_MULTIPLE:
            raise ValueError(f"{name} has {columns} columns, not those of {num_identities}")
        return value[:, :num_identities].T
    if value.ndim == 2:
        # A matrix product stands for a 1x1 convolution, and in the stem for one of 4x4 patches.
        side = 4 if name == "trunk.conv1.weight" else 1
        value = value.reshape(side, side, -1, value.shape[1])
    return value.transpose(3, 2, 0, 1)


def _to_flax(name: str, leaf: str, value: np.ndarray, shape: Shape) -> np.ndarray:
    """An array of PyTorch's in the layout of a Flax array of this shape."""
    if leaf != "kernel":
        return value
    if not name.startswith("trunk."):
        return np.pad(value.T, ((0, 0), (0, shape[1] - len(value))))
    return value.transpose(2, 3, 1, 0).reshape(shape)


def _check_trunk(found: Mapping[str, Shape], wanted: Mapping[str, Shape], source: str) -> None:
    """PretrainedError if the trunk is another one."""
    layers = [{name for name in shapes if _TRUNK_LAYER.match(name)} for shapes in (found, wanted)]
    for name in sorted(layers[0] | layers[1], key=_depth):
        theirs, needed = found.get(name), wanted.get(name)
        if theirs == needed:
            continue
        kinds = [_architecture(names) for names in layers]
        seems = f"; it seems to hold a {kinds[0]}, not a {kinds[1]}" if len(set(kinds)) > 1 else ""
        raise PretrainedError(
            f"{source}: another architecture than config.model.backbone: in the file "
            f"{name.removeprefix('trunk.')} is {theirs or 'missing'}, in the network "
            f"{needed or 'missing'}{seems}"
        )


def _depth(name: str) -> list[tuple[int, str]]:
    """A key that sorts layers from the stem on, layer 10 after layer 9."""
    parts = re.split(r"(\d+)", name.removeprefix("trunk."))
    stem = 0 if parts[0] in ("conv", "bn") else 1
    return [(stem, ""), *((int(p), "") if p.isdigit() else (0, p) for p in parts)]


def _architecture(names: Iterable[str]) -> str:
    """What the layers of a trunk say about its kind."""
    names = set(names)
    layers = (re.search(r"layer(\d+)\.(\d+)\.", name) for name in names)
    blocks = {match.groups() for match in layers if match}
    stages = sorted({stage for stage, _ in blocks})
    sizes = [sum(stage == of for of, _ in blocks) for stage in stages]
    kind = "bottleneck" if "trunk.layer1.0.conv3.weight" in names else "basic"
    plain = f"ResNet of {'+'.join(map(str, sizes))} {kind} blocks"
    ibn = "-IBN-a" if "trunk.layer1.0.bn1.IN.weight" in names else ""
    non_local = " with non-local blocks" if any("trunk.NL_" in name for name in names) else ""
    return _RESNETS.get((kind, *sizes), plain) + ibn + non_local


def _named(name: str, shape: Shape) -> str:
    return f"{name} {shape}"


def _few(entries: list[str], limit: int = 4) -> str:
    if not entries:
        return ""
    more = f" and {len(entries) - limit} more" if len(entries) > limit else ""
    return f" ({'; '.join(entries[:limit])}{more})"
