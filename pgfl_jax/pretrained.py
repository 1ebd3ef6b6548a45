"""Weights to and from PyTorch: its files, its names, its array layouts.

docs/pretrained.md lists the files that can be read and what is kept of them.
"""

import dataclasses
import itertools
import pickle
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError

from pgfl_jax.files import replacing, stand_in
from pgfl_jax.models.classifier import CLASS_MULTIPLE
from pgfl_jax.weight_tables import TABLES
from pgfl_jax.weight_tables.table import (
    Normalisation,
    PretrainedError,
    Shape,
    Shapes,
    StateDict,
    Table,
)

__all__ = [
    "PretrainedError",
    "Report",
    "from_state_dict",
    "load_backbone",
    "read_state_dict",
    "save_state_dict",
    "to_state_dict",
    "torch_name",
]

# Where larger checkpoints keep the state dict.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "network", "net")
# The prefixes that DataParallel, torch.compile and Lightning add to every name.
_ADDED = re.compile(r"((module|_orig_mod|model)\.)+")
# The prefixes of each naming scheme, and ours. The trunk's comes first.
_SCHEMES = (
    {"trunk.": "trunk.", "main_neck.": "main_neck.", "main_pooling.": "main_pooling."},
    # fast-reid, with the names of older versions
    {
        "backbone.": "trunk.",
        "heads.bottleneck.0.": "main_neck.",
        "heads.bnneck.": "main_neck.",
        "heads.pool_layer.p": "main_pooling.power",
    },
    # strong-baseline, and TransReID, whose b1 is described in weight_tables/vit.py
    {"base.": "trunk.", "bottleneck.": "main_neck.", "b1.": "trunk.b1."},
    # torchvision, timm, torchreid, and the neck and pooling of our exported artifacts
    {"": "trunk.", "main_neck.": "main_neck.", "main_pooling.": "main_pooling."},
)
_FIRST_BLOCKS = tuple(name for table in TABLES for name in (table.first, *table.spellings))
# A trunk under such a name only averages the weights of another, which is the trained one: MoCo's
# encoder_k and momentum_encoder, BYOL's target_encoder.
_FOLLOWER = re.compile(r"(?:^|[._])(?:k|momentum|target)[._]")
_COUNTER = "num_batches_tracked"
# Where kernels are convolutions in PyTorch; elsewhere they are classifiers.
_CONVOLUTIONS = ("trunk.", "main_pooling.")

_INSTALL = "pip install -c constraints.txt -e '.[parity]'"
_NAMES = {
    "downsample_conv": "downsample.0",
    "downsample_bn": "downsample.1",
    "patch_embed": "patch_embed.proj",
    "patch_embed_norm": "patch_embed.norm",
    "kernel": "weight",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
}


@dataclasses.dataclass(frozen=True)
class Report:
    """What happened to each array; BatchNorm's batch counters are not listed.

    Attributes:
        used: arrays of the file that were taken, by their names in the file without the prefixes
            that :func:`read_state_dict` removes.
        missing: arrays of the network that the file lacks, by our PyTorch names.
        left_over: arrays of the file that were not taken.
        reasons: why not, for arrays that one might expect to be taken.
        choice: which of the file's state dicts was read, where it has others; else empty.
        normalisation: how pictures were normalised in training, where the file shows that.
    """

    used: Mapping[str, Shape]
    missing: Mapping[str, Shape]
    left_over: Mapping[str, Shape]
    reasons: Mapping[str, str]
    choice: str = ""
    normalisation: Normalisation | None = None

    def __str__(self) -> str:
        """One line of counts, with the first missing and left-over names, and the choice."""
        left_over = [
            f"{_named(name, shape)}{f', {self.reasons[name]}' if name in self.reasons else ''}"
            for name, shape in self.left_over.items()
        ]
        missing = [_named(name, shape) for name, shape in self.missing.items()]
        return (
            f"{len(self.used)} arrays taken; {len(missing)} missing{_few(missing)}; "
            f"{len(left_over)} left over{_few(left_over)}{self.choice and f'; {self.choice}'}"
        )


def load_backbone(
    path: Path | str, variables: Mapping[str, Any], *, map_shape: tuple[int, int] | None = None
) -> tuple[dict[str, Any], Report]:
    """Load the trunk from a file in any of the known naming schemes.

    If the file has them and they fit, this also takes the scale and statistics of the main
    branch's BNNeck and the power of its GeM pooling. It never takes classifiers, which were trained
    on other identities.

    Args:
        path: ``.safetensors``, or a file written by ``torch.save``.
        variables: ``params`` and ``batch_stats`` of :class:`pgfl_jax.models.PGFL`, arrays or
            their abstract shapes.
        map_shape: (h, w) of the feature map, to which the position embeddings of a transformer are
            resampled; None: twice as tall as wide.

    Returns:
        The variables and the report. Arrays from the file are NumPy arrays of the file's dtype
        (float32 for half precision); the others are unchanged. ``missing`` covers the trunk only,
        and is empty.

    Raises:
        PretrainedError: the file cannot be read or holds another architecture; or an array that
            is used, which the error names, is not of floating-point numbers, not finite in
            float32, or a variance below 0.
    """
    tensors, choice = _read(Path(path))
    table, wanted = _table(variables), _wanted(variables, None)
    names = _our_names(table, tensors, str(path))
    of_trunk = {name: our for name, our in names.items() if our.startswith("trunk.")}
    normalisation = _normalisation(table, of_trunk, tensors)
    trunk = {our: tensors.pop(name) for name, our in of_trunk.items()}
    arranged, note = table.arrange(trunk, wanted, map_shape, str(path))
    theirs = {our: name for name, our in of_trunk.items()}
    for our, value in arranged.items():
        tensors[theirs.get(our, our)] = value
        names[theirs.get(our, our)] = our
    filled, report = _fill(tensors, names, variables, str(path), None)
    choice = "; ".join(filter(None, (choice, note)))
    return filled, dataclasses.replace(report, choice=choice, normalisation=normalisation)


def from_state_dict(
    state_dict: Mapping[str, Any], variables: Mapping[str, Any], num_identities: int
) -> tuple[dict[str, Any], Report]:
    """Load the whole network from a state dict with the names of :func:`to_state_dict`.

    Args:
        state_dict: arrays by name, as returned by :func:`read_state_dict`.
        variables: as for :func:`load_backbone`, of a network with N identities.
        num_identities: N.

    Returns:
        As :func:`load_backbone`, but ``missing`` covers the whole network. Arrays missing outside
        the trunk are unchanged.

    Raises:
        PretrainedError: an array of the trunk is missing, or an array has the wrong shape, type
            or values, as in :func:`load_backbone`.
    """
    names = {name: name for name in state_dict}
    return _fill(dict(state_dict), names, variables, "the state dict", num_identities)


def to_state_dict(variables: Mapping[str, Any], num_identities: int) -> StateDict:
    """The whole network as a PyTorch state dict.

    Kernels become OIHW; 1×1 and patch kernels become convolutions again. Classifiers (D, columns)
    become (N, D), without the padding columns. Values are kept bit for bit. BatchNorm's batch
    counters, which this project does not keep, are 0.

    Args:
        variables: ``params`` and ``batch_stats`` of :class:`pgfl_jax.models.PGFL`.
        num_identities: N.

    Raises:
        ValueError: the classifiers' columns do not fit N identities.
    """
    state_dict, table = {}, _table(variables)
    for path, leaf in flatten_dict(variables).items():
        name = torch_name(path[1:])
        value = _to_torch(table, name, path[-1], np.asarray(leaf), num_identities)
        state_dict[name] = np.array(value, order="C")
        if name.startswith("trunk.") and name.endswith("running_var"):
            counter = name.removesuffix("running_var") + _COUNTER
            state_dict[counter] = np.zeros((), np.int64)
    return state_dict


def save_state_dict(path: Path | str, state_dict: Mapping[str, np.ndarray]) -> None:
    """Write ``.safetensors``, or ``.pth`` or ``.pt`` with PyTorch; whole or not at all.

    Raises:
        PretrainedError: the suffix is another, or PyTorch is needed and not installed.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", ".pth", ".pt"):
        raise PretrainedError(f"{path}: must end in .safetensors, .pth or .pt")
    with replacing(path) as beside:
        if path.suffix == ".safetensors":
            # safetensors writes memory in its physical order.
            arrays = {name: np.asarray(value, order="C") for name, value in state_dict.items()}
            safetensors.numpy.save_file(arrays, beside)
        else:
            torch = _torch(path)
            # Copied, since PyTorch warns about read-only arrays.
            tensors = {name: torch.from_numpy(value.copy()) for name, value in state_dict.items()}
            torch.save(tensors, beside)


def read_state_dict(path: Path | str) -> StateDict:
    """The arrays of a file, without enclosing dictionaries and name prefixes.

    Args:
        path: safetensors, or a file written by ``torch.save``, whatever its suffix.

    Returns:
        The arrays by name; half precision becomes float32.

    Raises:
        PretrainedError: the file does not exist, cannot be read, is damaged, holds no state dict,
            holds an array that NumPy cannot represent, or holds one twice; or it is a Git LFS
            pointer or a web page.
    """
    return _read(Path(path))[0]


def _read(path: Path) -> tuple[StateDict, str]:
    """What :func:`read_state_dict` returns, and ``Report.choice``."""
    if path.is_dir():
        raise PretrainedError(f"{path}: {_folder_problem(path)}")
    if not path.is_file():
        raise PretrainedError(f"{path}: no such file")
    choice = ""
    if _holds_safetensors(path):
        try:
            tensors = safetensors.numpy.load_file(path)
        except OSError as error:
            raise PretrainedError(f"{path}: {error.strerror or error}") from error
        except SafetensorError as error:
            raise PretrainedError(
                f"{path}: damaged, or not a safetensors file ({error})"
            ) from error
        except AttributeError as error:  # raised for a dtype that NumPy lacks
            raise PretrainedError(f"{path}: holds a type that NumPy lacks ({error})") from error
    else:
        tensors, choice = _read_torch(path)
    arrays: StateDict = {}
    for name, tensor in tensors.items():
        half = tensor.dtype.name in ("float16", "bfloat16")
        plain = name[match.end() :] if (match := _ADDED.match(name)) else name
        if plain in arrays:
            raise PretrainedError(f"{path}: holds {plain} twice, once as {name}")
        arrays[plain] = tensor.astype(np.float32) if half else tensor
    return arrays, choice


def _folder_problem(folder: Path) -> str:
    """Why a folder is not a file of weights, and what to do."""
    for above in (folder, *folder.parents[:3]):  # a run, its checkpoints, one of these, its arrays
        if (above / "config.json").is_file() and (above / "checkpoints").is_dir():
            return (
                f"belongs to the run {above}, whose checkpoints are not read here; write its "
                "weights to a file, as the end of docs/pretrained.md does, and give that"
            )
    return "is a folder; give a file"


def _holds_safetensors(path: Path) -> bool:
    """Whether a file is safetensors: by its first bytes, or its suffix where they fit no format.

    Raises:
        PretrainedError: a download left something else than weights.
    """
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise PretrainedError(f"{path}: {error.strerror or error}") from error
    if found := stand_in(head):
        raise PretrainedError(f"{path}: {found}")
    by_torch = head.startswith((b"PK\x03\x04", b"\x80"))  # a zip archive or a pickle
    # Eight bytes of length precede the JSON of safetensors; the first may be a pickle's.
    return head[8:9] == b"{" or (path.suffix.lower() == ".safetensors" and not by_torch)


def _read_torch(path: Path) -> tuple[StateDict, str]:
    """The arrays of a file that PyTorch wrote, and ``Report.choice``."""
    torch = _torch(path)
    try:
        # torchreid stores scores as NumPy scalars, which are safe: a type and bytes. The file is
        # opened here because PyTorch goes by the suffix .safetensors.
        with path.open("rb") as file, torch.serialization.safe_globals(_numpy_numbers()):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise PretrainedError(f"{path}: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        if refused := re.search(r"Unsupported (?:global: GLOBAL|class) (\S+)", str(error)):
            raise PretrainedError(
                f"{path}: holds more than arrays ({refused[1]}), and loading that could run any "
                "program; if you trust its source, save only the state dict: "
                f"torch.save(torch.load('{path.name}', weights_only=False)['state_dict'], "
                "'weights.pth'), or .state_dict() of a whole model"
            ) from error
        raise PretrainedError(f"{path}: damaged, or not written by torch.save") from error
    except Exception as error:  # the kind depends on where the file is damaged
        raise PretrainedError(f"{path}: damaged, or not written by torch.save") from error
    tensors = _unwrapped(content, torch.Tensor)
    if not tensors:
        found = ", ".join(map(str, itertools.islice(content, 5))) if _is_dict(content) else ""
        found = found or type(content).__name__
        raise PretrainedError(f"{path}: holds no state dict, only {found}")
    half = (torch.float16, torch.bfloat16)  # NumPy has no bfloat16
    arrays = {}
    for name, value in tensors.items():
        try:
            arrays[name] = (value.float() if value.dtype in half else value).numpy(force=True)
        except (TypeError, NotImplementedError) as error:  # sparse, of eight bits, or without data
            raise PretrainedError(f"{path}: NumPy cannot represent {name} ({error})") from error
    return arrays, _choice(content, torch.Tensor)


def _numpy_numbers() -> list[Any]:
    """What unpickles a NumPy scalar, under the names of NumPy 1 and 2."""
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
    """The tensors of the state dict in ``content``; empty if there is none.

    Of state dicts side by side, as a student's and a teacher's, each keeps its key as a prefix.
    """
    if not _is_dict(content):
        return {}
    if name := _wrapper(content):
        return _unwrapped(content[name], tensor)
    tensors = {str(name): value for name, value in content.items() if isinstance(value, tensor)}
    return tensors or {
        f"{key}.{name}": value
        for key, inner in content.items()
        for name, value in _unwrapped(inner, tensor).items()
    }


def _wrapper(content: Mapping[Any, Any]) -> str:
    """The key under which a checkpoint keeps its state dict; empty if it has none."""
    return next((name for name in _WRAPPERS if _is_dict(content.get(name))), "")


def _choice(content: Any, tensor: type) -> str:
    """Which state dict of several was read, as timm's ``state_dict`` beside ``state_dict_ema``."""
    name = _wrapper(content) if _is_dict(content) else ""
    if not name:
        return ""
    others = [
        str(key)
        for key, value in content.items()
        if key != name and any(array.endswith(_FIRST_BLOCKS) for array in _unwrapped(value, tensor))
    ]
    if not others:
        return _choice(content[name], tensor)
    return f"{name} was read, not {', '.join(others)} (docs/pretrained.md says how to take it)"


def _table(variables: Mapping[str, Any]) -> Table:
    """How files name the trunk of a network."""
    ours = {torch_name(path[1:]) for path in flatten_dict(variables)}
    # Tables differ in kernels, of which a tree of statistics alone has none.
    return next((table for table in TABLES if f"trunk.{table.first}" in ours), TABLES[0])


def _our_names(table: Table, tensors: Iterable[str], source: str) -> dict[str, str]:
    """Our name of each array that belongs to a backbone, by its name in the file."""
    spelled = _respelled(table, list(tensors))
    prefix = _trunk_prefix(table, list(spelled.values()), source)
    for scheme in _SCHEMES:
        trunk = next(iter(scheme))
        if f".{prefix}".endswith(f".{trunk}"):
            break
    outer = prefix.removesuffix(trunk)
    ours = {
        name: our + spelling.removeprefix(outer + their)
        for their, our in scheme.items()
        for name, spelling in spelled.items()
        if spelling.startswith(outer + their)
    }
    return {
        name: our
        for name, our in ours.items()
        if not our.startswith("trunk.") or table.layer.match(our)
    }


def _normalisation(
    table: Table, of_trunk: Iterable[str], tensors: StateDict
) -> Normalisation | None:
    """How pictures were normalised in training, where a file's names or arrays show that."""
    mean, std = (
        tuple(float(x) / 255 for x in tensors.get(name, np.zeros(0)).ravel())
        for name in ("pixel_mean", "pixel_std")  # fast-reid's, of pictures in [0, 255]
    )
    if len(mean) == len(std) == 3 and max(mean) > 0.01:
        return Normalisation("by its pixel_mean and pixel_std", mean, std)
    return next(
        (
            normalisation
            for pattern, normalisation in table.normalised.items()
            if any(re.search(pattern, name) for name in of_trunk)
        ),
        None,
    )


def _respelled(table: Table, names: Sequence[str]) -> dict[str, str]:
    """The table's own spelling of each name that a file spells otherwise, by the file's."""
    spelled = {name: name for name in names}
    for marker, replacements in table.spellings.items():
        prefixes = [name.removesuffix(marker) for name in names if name.endswith(marker)]
        # A longer prefix belongs to a part of what a shorter one begins.
        for prefix in sorted(prefixes, key=len):
            for name in names:
                for pattern, replacement in replacements.items():
                    if name.startswith(prefix) and re.match(pattern, name[len(prefix) :]):
                        rest = re.sub(pattern, replacement, name[len(prefix) :], count=1)
                        spelled[name] = prefix + rest
    return spelled


def _trunk_prefix(table: Table, names: Sequence[str], source: str) -> str:
    """What precedes the names of the trunk's layers; PretrainedError unless there is one trunk."""
    prefixes = [
        name.removesuffix(table.first) for name in names if f".{name}".endswith(f".{table.first}")
    ]
    complete = [prefix for prefix in prefixes if prefix + table.stem in names]
    other = "" if complete else _other_kind(table, names)
    if not prefixes or other:
        raise PretrainedError(
            f"{source}: not a {table.kind} in a known naming scheme (docs/pretrained.md); "
            + (f"it holds a {other}" if other else f"its first arrays are {', '.join(names[:3])}")
        )
    trained = [prefix for prefix in complete if not _FOLLOWER.search(prefix)]
    teachers = [prefix for prefix in trained if table.teacher and table.teacher.search(prefix)]
    choices = teachers or trained or complete or prefixes
    if len(choices) > 1:
        raise PretrainedError(
            f"{source}: holds {len(choices)} trunks, under {', '.join(map(repr, choices))}; save "
            "the one you want alone (docs/pretrained.md)"
        )
    if table.needs_stem and not complete:
        raise PretrainedError(
            f"{source}: holds blocks of a {table.kind} without {table.stem}, as a tower for text "
            "does; give the one for pictures"
        )
    return choices[0]


def _other_kind(table: Table, names: Sequence[str]) -> str:
    """The kind of trunk that a file holds, if another table knows it; else empty."""
    for other in TABLES:
        known = set(_respelled(other, names).values())
        if other is not table and any(
            f".{name}".endswith(f".{other.first}")
            and name.removesuffix(other.first) + other.stem in known
            for name in known
        ):
            return other.kind
    return ""


def _wanted(variables: Mapping[str, Any], num_identities: int | None) -> dict[str, Shape]:
    """Shapes in PyTorch's layout, by PyTorch's names."""
    table = _table(variables)
    return {
        (name := torch_name(path[1:])): _to_torch(
            table, name, path[-1], np.zeros(leaf.shape, bool), num_identities
        ).shape
        for path, leaf in flatten_dict(variables).items()
    }


def _fill(
    tensors: StateDict,
    names: Mapping[str, str],
    variables: Mapping[str, Any],
    source: str,
    num_identities: int | None,
) -> tuple[dict[str, Any], Report]:
    """Replace variables by ``tensors``, matched by ``names``.

    With ``num_identities`` the file must fit the whole network, otherwise the trunk.
    """
    leaves, whole, table = flatten_dict(variables), num_identities is not None, _table(variables)
    places = {torch_name(path[1:]): path for path in leaves}
    tensors = {name: value for name, value in tensors.items() if not name.endswith(_COUNTER)}
    ours = {names[name]: value for name, value in tensors.items() if name in names}
    wanted = _wanted(variables, num_identities)
    found = {name: value.shape for name, value in ours.items()}
    _check_trunk(table, found, wanted, source)
    used: dict[str, Shape] = {}
    left_over: dict[str, Shape] = {}
    reasons: dict[str, str] = {}
    for file_name, value in tensors.items():
        name = names.get(file_name, "")
        fits, reason = _fits(name, value, wanted)
        if fits:
            _check_values(f"{source}: {file_name}", name, value)
        if not fits and whole and name in wanted:
            raise PretrainedError(f"{source}: {name} is {value.shape}, but {reason}")
        (used if fits else left_over)[file_name] = value.shape
        if fits and name in places:
            path = places[name]
            leaves[path] = _to_flax(table, name, path[-1], value, leaves[path].shape)
        if reason:
            reasons[file_name] = reason
    missing = {
        name: shape
        for name, shape in wanted.items()
        if name not in ours and (whole or name.startswith("trunk."))
    }
    return unflatten_dict(leaves), Report(used, missing, left_over, reasons)


def _fits(name: str, value: np.ndarray, wanted: Mapping[str, Shape]) -> tuple[bool, str]:
    """Whether the network can take an array; and if not, why not, unless that is obvious."""
    if name.endswith("_neck.bias"):
        # Our BNNeck has no bias, which is the same as a bias of 0.
        return (False, "not 0, and the BNNeck has no bias") if value.any() else (True, "")
    if name not in wanted:
        return False, ""
    if value.shape != wanted[name] and not (name == "main_pooling.power" and value.size == 1):
        return False, f"the network has {wanted[name]}"
    return True, ""


def _check_values(label: str, name: str, value: np.ndarray) -> None:
    """PretrainedError if an array cannot be weights; ``label`` names it there."""
    if not np.issubdtype(value.dtype, np.floating):
        raise PretrainedError(
            f"{label} is of type {value.dtype}; give the weights as floating-point numbers"
        )
    with np.errstate(over="ignore"):
        finite = np.isfinite(value.astype(np.float32)).all()  # the network's type
    if not finite:
        raise PretrainedError(f"{label} has values that are not finite in float32")
    if name.endswith("running_var") and (value < 0).any():
        raise PretrainedError(f"{label} has negative variances; the file is damaged")
    # A scale or an offset may be 0, and the last layer of the pooling starts at 0; what was never
    # filled in would block all that comes after.
    kernel = value.ndim == 4 and not name.startswith(("main_pooling.maps.", "main_pooling.gate."))
    if (name.endswith("running_var") or kernel) and not value.any():
        raise PretrainedError(f"{label} is 0 throughout; the file was never filled in")


def torch_name(path: tuple[str, ...]) -> str:
    """PyTorch's name of a module or a variable.

    >>> torch_name(("trunk", "layer1_0", "bn1", "scale"))
    'trunk.layer1.0.bn1.weight'
    """
    parts = (_NAMES.get(part, part) for part in path if part != "dense")
    return re.sub(r"(?<=\d)_|_(?=\d)", ".", ".".join(parts))


def _to_torch(
    table: Table, name: str, leaf: str, value: np.ndarray, num_identities: int | None
) -> np.ndarray:
    """A view of a Flax array in PyTorch's layout; with None, classifiers keep their padding."""
    if leaf != "kernel":
        return value
    if not name.startswith(_CONVOLUTIONS):
        columns = value.shape[1]
        if num_identities is not None and not 0 <= columns - num_identities < CLASS_MULTIPLE:
            raise ValueError(f"{name} has {columns} columns, too many or few for {num_identities}")
        return value[:, :num_identities].T
    if table.linear.match(name):
        return value.T
    if value.ndim == 2:
        # Matrix products replace 1x1 convolutions and convolutions of patches.
        side = table.patches.get(name, 1)
        value = value.reshape(side, side, -1, value.shape[1])
    return value.transpose(3, 2, 0, 1)


def _to_flax(table: Table, name: str, leaf: str, value: np.ndarray, shape: Shape) -> np.ndarray:
    """A PyTorch array in the layout of a Flax array of this shape."""
    if leaf != "kernel":
        return value.reshape(shape)  # fast-reid stores GeM's power as (1,)
    if not name.startswith(_CONVOLUTIONS):
        return np.pad(value.T, ((0, 0), (0, shape[1] - len(value))))
    if table.linear.match(name):
        return value.T
    return value.transpose(2, 3, 1, 0).reshape(shape)


def _check_trunk(table: Table, found: Shapes, wanted: Shapes, source: str) -> None:
    """PretrainedError if the trunks differ in a layer or its shape."""
    layers = [
        {name: shape for name, shape in shapes.items() if table.layer.match(name)}
        for shapes in (found, wanted)
    ]
    for name in sorted(layers[0].keys() | layers[1], key=_depth):
        theirs, needed = found.get(name), wanted.get(name)
        if theirs == needed:
            continue
        kinds = [table.describe(shapes) for shapes in layers]
        seems = f"; it seems to hold a {kinds[0]}, not a {kinds[1]}" if len(set(kinds)) > 1 else ""
        raise PretrainedError(
            f"{source}: not the architecture of config.model.backbone: in the file "
            f"{name.removeprefix('trunk.')} is {theirs or 'missing'}, in the network "
            f"{needed or 'missing'}{seems}"
        )


def _depth(name: str) -> list[tuple[int, str]]:
    """A sort key that orders layers from the stem up, layer 10 after layer 9."""
    parts = re.split(r"(\d+)", name.removeprefix("trunk."))
    stem = 0 if parts[0] in ("conv", "bn") else 1
    return [(stem, ""), *((int(p), "") if p.isdigit() else (0, p) for p in parts)]


def _named(name: str, shape: Shape) -> str:
    return f"{name} {shape}"


def _few(entries: list[str], limit: int = 4) -> str:
    if not entries:
        return ""
    more = f" and {len(entries) - limit} more" if len(entries) > limit else ""
    return f" ({'; '.join(entries[:limit])}{more})"
