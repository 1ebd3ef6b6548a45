"""An ONNX or StableHLO artifact as the object that :func:`pgfl_jax.load` gives."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Shaped
from safetensors.numpy import load_file

from pgfl_jax.checksums import sha256
from pgfl_jax.config import stored_config
from pgfl_jax.distributed.devices import require_devices
from pgfl_jax.distributed.sharding import make_mesh
from pgfl_jax.embedder import Embedder, Variables, check_images
from pgfl_jax.errors import UserError
from pgfl_jax.experiment import make_model
from pgfl_jax.export.contract import CONTRACTS, Contract
from pgfl_jax.export.runtimes import run_onnxruntime
from pgfl_jax.export.verify import PREPROCESSING, RECORD, read_record
from pgfl_jax.preprocessing import normalise

_Function = Callable[[Variables, Array], Any]


def load_artifact(
    folder: Path, checkpoint: str | int, parameters: str, dtype: str | None
) -> Embedder:
    """The embedder of an artifact.

    Args:
        folder: of the artifact.
        checkpoint: must be ``newest``: there is one.
        parameters: must be ``trained``, whichever the artifact has.
        dtype: must be None: it is fixed.

    Raises:
        UserError: a choice that an artifact does not leave; a file is damaged, the format cannot
            be loaded, or its runtime is not installed.
    """
    if (checkpoint, parameters, dtype) != ("newest", "trained", None):
        raise UserError(
            f"{folder}: an artifact holds one checkpoint; leave out checkpoint, parameters and "
            "dtype, or give the run's folder"
        )
    require_devices()
    record = read_record(folder, RECORD)
    try:
        name, digests = record["format"], dict(record["files"])
        contract = CONTRACTS[record["contract"]]
        step, held = record["checkpoint"]["step"], record["checkpoint"]["parameters"]
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(f"{folder / RECORD}: damaged; export again") from error
    if name not in _LOADERS:
        raise UserError(
            f"{folder}: the format {name} cannot be loaded here; take {' or '.join(_LOADERS)}"
        )
    files, load = _LOADERS[name]
    for file in (*files, "config.json", PREPROCESSING):
        if not (folder / file).is_file() or sha256(folder / file) != digests.get(file):
            raise UserError(f"{folder / file}: damaged; export again")
    config = stored_config(read_record(folder, "config.json"))
    function, variables = load(folder)
    return _ArtifactEmbedder(
        config,
        make_model(config, num_identities=1),
        variables,
        step,
        parameters=held,
        function=function,
        contract=contract,
        channels=read_record(folder, PREPROCESSING)["output"]["shape"][1],
        folder=folder.absolute(),
    )


def _load_stablehlo(folder: Path) -> tuple[_Function, Variables]:
    try:
        program = jax.export.deserialize(bytearray((folder / "model.stablehlo").read_bytes()))
    except ImportError as error:  # JAX does not require it
        raise UserError(
            f"{folder}: flatbuffers is not installed; pip install flatbuffers"
        ) from error
    return program.call, load_file(folder / "model.safetensors")


def _load_onnx(folder: Path) -> tuple[_Function, Variables]:
    try:
        run = run_onnxruntime.load(str(folder / "model.onnx"))
    except ModuleNotFoundError as error:
        raise UserError(
            f"{folder}: onnxruntime is not installed; pip install onnxruntime"
        ) from error
    return lambda variables, images: run(np.asarray(images)), {}


_LOADERS = {
    "stablehlo": (("model.stablehlo", "model.safetensors"), _load_stablehlo),
    "onnx": (("model.onnx",), _load_onnx),
}


@dataclasses.dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class _ArtifactEmbedder(Embedder):
    """Pictures to embeddings, by an exported model.

    Attributes:
        function: from variables and a batch as the contract says to embeddings.
        contract: the model's input.
        channels: length of an embedding.
        folder: of the artifact.
    """

    function: _Function
    contract: Contract
    channels: int
    folder: Path

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle, which cannot hold a runtime: load the artifact again."""
        return load_artifact, (self.folder, "newest", "trained", None)

    @property
    def dim(self) -> int:
        return self.channels

    def apply(
        self, variables: Variables, images: Shaped[Array, "batch height width 3"]
    ) -> Float[Array, "batch channels"]:
        data = self.config.data
        check_images(images, data.height, data.width)
        if self.contract.dtype == "uint8" and images.dtype != np.uint8:  # 0.9 would become 0
            raise ValueError(f"images have type {images.dtype}; this artifact takes uint8")
        if self.contract.normalised:
            images = normalise(images, data.mean, data.std)
        if self.contract.channels_first:
            images = jnp.transpose(images, (0, 3, 1, 2))
        return jnp.asarray(self.function(variables, images.astype(self.contract.dtype)))

    @functools.cached_property
    def _mesh(self) -> Mesh:
        """One device: the exported program is for one."""
        return make_mesh(jax.local_devices()[:1])

    @functools.cached_property
    def _compiled(self) -> Callable[[Array], Array]:
        apply = jax.jit(self.apply) if self.variables else self.apply
        return functools.partial(apply, self.variables)
