"""Ten lines of Python that embed a picture on each runtime, for model cards and documentation."""

import dataclasses
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any


@dataclasses.dataclass(frozen=True)
class Usage:
    """What is special to a runtime.

    Attributes:
        title: its name.
        install: for pip.
        imports: the lines that import it.
        load: lines that make ``model`` from the model's path ``{path}``, in ``{folder}``.
        call: the expression for ``rows`` from ``pixels``.
    """

    title: str
    install: str
    imports: str
    load: str
    call: str


USAGES: Mapping[str, Usage] = {
    "onnxruntime": Usage(
        "ONNX Runtime",
        "onnxruntime pillow",
        "import onnxruntime",
        'model = onnxruntime.InferenceSession("{path}")',
        'model.run(None, {"images": pixels})[0]',
    ),
    "openvino": Usage(
        "OpenVINO",
        "openvino pillow",
        "import openvino",
        'exact = {{"INFERENCE_PRECISION_HINT": "f32"}}  # its default may be bfloat16\n'
        'model = openvino.Core().compile_model("{path}", "CPU", exact)',
        'model({"images": pixels})["embeddings"]',
    ),
    "tensorflow": Usage(
        "TensorFlow",
        "tensorflow pillow",
        "import tensorflow as tf",
        'loaded = tf.saved_model.load("{path}")\nmodel = loaded.signatures["serving_default"]',
        'model(images=pixels)["embeddings"].numpy()',
    ),
    "litert": Usage(
        "LiteRT",
        "ai-edge-litert pillow",
        "from ai_edge_litert.interpreter import Interpreter",
        'model = Interpreter("{path}").get_signature_runner()',
        'model(images=pixels)["embeddings"]',
    ),
    "jax": Usage(
        "JAX",
        "jax flatbuffers pillow",
        "import jax.export",
        'program = Path("{path}").read_bytes()\n'
        "model = jax.jit(jax.export.deserialize(bytearray(program)).call)",
        "np.asarray(model(pixels))",
    ),
    "torch": Usage(
        "PyTorch",
        "torch numpy pillow",
        "import torch",
        'sys.path.append("{folder}")\nfrom model import load\n\nmodel = load("{folder}")',
        "model(torch.tensor(pixels)).numpy()",
    ),
    "torch_exported": Usage(
        "PyTorch, without the source",
        "torch numpy pillow",
        "import torch",
        'model = torch.export.load("{path}").module()',
        "model(torch.tensor(pixels)).numpy()",
    ),
}

_ARRANGE = {
    "uint8_nhwc": "",
    "float255_nchw": 'pixels = pixels.transpose(0, 3, 1, 2).astype("float32")\n',
    "normalised_nchw": "pixels = (pixels / 255 - {mean}) / {std}\n"
    'pixels = pixels.transpose(0, 3, 1, 2).astype("float32")\n',
}


def lines(runtime: str, path: str, preprocessing: Mapping[str, Any]) -> str:
    """The lines of Python, from ``someone.jpg`` to ``rows`` (1, D).

    Args:
        runtime: one of ``USAGES``.
        path: of the model.
        preprocessing: the content of ``preprocessing.json``.
    """
    mean, std = preprocessing["mean"], preprocessing["std"]
    height, width = preprocessing["size"]["height"], preprocessing["size"]["width"]
    usage = USAGES[runtime]
    every = ["import numpy as np", *usage.imports.splitlines()]
    imports = "\n".join(sorted(every, key=lambda line: line.split()[1]))
    standard = "".join(
        f"{line}\n\n"
        for name, line in (("Path(", "from pathlib import Path"), ("sys.", "import sys"))
        if name in usage.load
    )
    load = usage.load.format(path=path, folder=PurePath(path).parent)
    arrange = _ARRANGE[preprocessing["contract"]].format(mean=mean, std=std)
    return (
        f"{standard}{imports}\nfrom PIL import Image\n\n"
        f"{load}\n"
        'picture = Image.open("someone.jpg").convert("RGB")\n'
        f"picture = picture.resize(({width}, {height}), Image.Resampling.BILINEAR)\n"
        f"pixels = np.asarray(picture)[None]  # RGB\n{arrange}"
        f"rows = {usage.call}  # (1, D), of length 1\n"
    )
