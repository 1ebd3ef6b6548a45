"""The table of formats: who writes each, which files run, and on what.

To add a format, write a function that puts the model files into a folder, and a module
``runtimes/run_<runtime>.py`` that loads them (see ``runtimes/_main.py``), and add both here.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from pgfl_jax.embedder import Embedder
from pgfl_jax.export.contract import Contract
from pgfl_jax.export.graphs import read_saved_model, read_stablehlo
from pgfl_jax.export.litert import read_litert, write_litert, write_litert_int8
from pgfl_jax.export.onnx import write_onnx, write_onnx_int8
from pgfl_jax.export.onnx_file import Graph, read_graph
from pgfl_jax.export.saved_model import write_saved_model
from pgfl_jax.export.stablehlo import write_stablehlo
from pgfl_jax.export.torch import read_program, write_torch

Writer = Callable[[Embedder, Contract, Path], None]
# Its last argument are training pictures as the contract says, (N, …).
Quantiser = Callable[[Embedder, Contract, Path, np.ndarray], None]


@dataclasses.dataclass(frozen=True)
class Model:
    """A file of an artifact that runtimes load.

    Attributes:
        file: its name in the artifact's folder; may be a folder.
        runtimes: the modules ``runtimes/run_<name>.py`` that run it. An export needs the first;
            the others are checked where they are installed.
        precision: ``float32``, ``bfloat16``, ``float16`` or ``int8``.
    """

    file: str
    runtimes: tuple[str, ...]
    precision: str = "float32"


@dataclasses.dataclass(frozen=True)
class Format:
    """One of the formats of ``pgfl export --formats``.

    Attributes:
        write: writes the models into a folder, which exists. It imports what the wheel does not
            require when it is called.
        models: what it writes.
        graph: reads the size of a model's graph, which must be the main branch's.
        quantise: adds models in int8 to the folder, calibrated on training pictures; it is called
            after ``write``, where there are such pictures.
        quantised: what it writes.
        extra: what to install to write and check them, as in ``pip install 'pgfl-jax[export]'``.
    """

    write: Writer
    models: tuple[Model, ...]
    graph: Callable[[Path], Graph]
    quantise: Quantiser | None = None
    quantised: tuple[Model, ...] = ()
    extra: str = "export"


FORMATS: Mapping[str, Format] = {
    "stablehlo": Format(
        write_stablehlo,
        (
            Model("model.stablehlo", ("jax",)),
            Model("model_inside.stablehlo", ("jax",)),
            Model("model_bfloat16.stablehlo", ("jax",), "bfloat16"),
        ),
        read_stablehlo,
    ),
    "onnx": Format(
        write_onnx,
        (
            Model("model.onnx", ("onnxruntime", "openvino")),
            Model("model_float16.onnx", ("onnxruntime", "openvino"), "float16"),
        ),
        read_graph,
        write_onnx_int8,
        (Model("model_int8.onnx", ("onnxruntime", "openvino"), "int8"),),
    ),
    "saved_model": Format(
        write_saved_model,
        (Model("saved_model", ("tensorflow",)),),
        read_saved_model,
        extra="export,train",
    ),
    "litert": Format(
        write_litert,
        (
            Model("model.tflite", ("litert",)),
            Model("model_float16.tflite", ("litert",), "float16"),
        ),
        read_litert,
        write_litert_int8,
        (Model("model_int8.tflite", ("litert",), "int8"),),
        extra="export,train",
    ),
    "torch": Format(
        write_torch,
        (Model("model.safetensors", ("torch",)), Model("model.pt2", ("torch_exported",))),
        read_program,
    ),
}
