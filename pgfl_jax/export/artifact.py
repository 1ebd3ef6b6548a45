"""Write an artifact: a folder with a model in one format and everything that describes it.

It is written beside its place and gets its name only when its verification has passed.
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8

from pgfl_jax.checksums import sha256
from pgfl_jax.command_line import writable_folder
from pgfl_jax.embedder import Embedder
from pgfl_jax.errors import UserError
from pgfl_jax.export.contract import CONTRACTS, embed_function, named_variables
from pgfl_jax.export.formats import FORMATS, Format
from pgfl_jax.export.probe import probe_pictures
from pgfl_jax.export.verify import PREPROCESSING, PROBE, RECORD, Finding, compare
from pgfl_jax.files import replacing_folder


class ExportFailed(UserError):
    """An artifact that was not written, since it is wrong; the message says what is."""


def export(
    name: str, embedder: Embedder, folder: Path | str, *, contract: str = "uint8_nhwc"
) -> Path:
    """Write and verify an artifact.

    Args:
        name: the format, one of ``FORMATS``.
        embedder: of the run.
        folder: the artifact's; an artifact that is there is replaced.
        contract: the input, one of ``CONTRACTS``.

    Returns:
        The folder.

    Raises:
        UserError: an option is wrong, a package is missing, the folder cannot be written to, or
            the model is not right.
    """
    for option, value, choices in (("format", name, FORMATS), ("contract", contract, CONTRACTS)):
        if value not in choices:
            raise UserError(f"{option} = {value!r}: must be one of {', '.join(choices)}")
    folder = Path(folder).expanduser()
    writable_folder(folder.absolute().parent, "--out")
    embedder = in_float32(embedder)
    with replacing_folder(folder) as beside:
        with packages_of(FORMATS[name], name):
            FORMATS[name].write(embedder, CONTRACTS[contract], beside)
        _describe(embedder, name, contract, beside)
    return folder


def in_float32(embedder: Embedder) -> Embedder:
    """The embedder with its arithmetic in float32, which is what all formats are compared with."""
    model = dataclasses.replace(embedder.config.model, dtype="float32")
    config = dataclasses.replace(embedder.config, model=model)
    return dataclasses.replace(embedder, config=config, model=embedder.model.clone(dtype=None))


@contextlib.contextmanager
def packages_of(which: Format, name: str) -> Iterator[None]:
    """Turn the error of a missing package into a line that says what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(
            f"--formats={name}: the package {error.name} is not installed; "
            f"pip install 'pgfl-jax[{which.extra}]'"
        ) from error


def reference(
    embedder: Embedder, pictures: UInt8[np.ndarray, "n h w 3"]
) -> Float[np.ndarray, "n d"]:
    """JAX's embeddings of pictures of the network's size, on the CPU and in float32."""
    embed, variables = (
        jax.jit(embed_function(embedder, CONTRACTS["uint8_nhwc"])),
        named_variables(embedder),
    )
    with jax.default_device(jax.devices("cpu")[0]), jax.default_matmul_precision("highest"):
        starts = range(0, len(pictures), 32)
        rows = [np.asarray(embed(variables, pictures[i : i + 32])) for i in starts]
    return np.concatenate(rows)


def preprocessing(embedder: Embedder, name: str) -> dict[str, Any]:
    """The content of ``preprocessing.json``: from a picture file to an embedding, step by step."""
    data, contract = embedder.config.data, CONTRACTS[name]
    return {
        "contract": name,
        "size": {"height": data.height, "width": data.width},
        "channel_order": "RGB",
        "interpolation": "bilinear, with a filter that widens when a side shrinks (Pillow's "
        "BILINEAR, tf.image.resize with antialias=True)",
        "mean": list(data.mean),
        "std": list(data.std),
        "by_the_caller": ["decode", "resize", *(["normalise"] if contract.normalised else [])],
        "in_the_graph": [*([] if contract.normalised else ["normalise"]), "embed", "unit length"],
        "normalise": "(x / 255 - mean) / std per channel, for x in [0, 255]",
        "input": {
            "name": "images",
            "dtype": contract.dtype,
            "layout": "NCHW" if contract.channels_first else "NHWC",
            "shape": ["batch", *contract.row_shape(data.height, data.width)],
            "normalised_inside": not contract.normalised,
        },
        "output": {
            "name": "embeddings",
            "dtype": "float32",
            "shape": ["batch", embedder.dim],
            "unit_length": True,
        },
    }


def _describe(embedder: Embedder, name: str, contract: str, folder: Path) -> None:
    """Verify the models in a folder and write what belongs beside them.

    Raises:
        ExportFailed: they are not right.
    """
    data = embedder.config.data
    pictures = probe_pictures(data.height, data.width)
    expected = reference(embedder, pictures)
    description = preprocessing(embedder, contract)
    models = [dataclasses.asdict(model) for model in FORMATS[name].models]
    findings = list(compare(folder, models, description, pictures, expected))
    _refuse(findings, name)
    _write_json(folder / PREPROCESSING, description)
    np.savez_compressed(folder / PROBE, pictures=pictures, embeddings=expected)
    record: dict[str, Any] = {
        "format": name,
        "contract": contract,
        "models": models,
        "checks": [finding.record for finding in findings if finding.record],
    }
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    record["files"] = {path.relative_to(folder).as_posix(): sha256(path) for path in files}
    _write_json(folder / RECORD, record)


def _refuse(findings: list[Finding], name: str) -> None:
    wrong = [finding.line for finding in findings if finding.passed is False]
    if wrong:
        raise ExportFailed(f"{name}: not written, since it is wrong: {'; '.join(wrong)}")


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
