"""Embed arrays with a model file, in a process that holds NumPy and one runtime alone.

``python _main.py RUNTIME MODEL INPUT.npy OUTPUT.npy BATCH [INPUT.npy OUTPUT.npy BATCH …]``, by the
path of this file. ``RUNTIME`` is the name of a module beside it without ``run_``. ``INPUT`` has N
pictures as the model takes them. The last line printed is a JSON object: ``{"versions": {…}}``;
``{"missing": MODULE}`` with exit status 3 if the runtime is not installed; ``{"failed": ERROR}``
with exit status 4 if the model cannot be loaded or run.
"""

import importlib
import json
import platform
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# What none may import but those whose runtime it is.
_FOREIGN = ("pgfl_jax", "jax", "flax", "onnx", "onnxruntime", "openvino", "tensorflow", "torch",
            "ai_edge_litert")  # fmt: skip


def main(arguments: list[str]) -> int:
    """Run; returns the exit status."""
    name, model, *jobs = arguments
    runtime = importlib.import_module(f"run_{name}")
    try:
        _embed(runtime, model, jobs)
    except Exception as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name
        if missing and missing.partition(".")[0] in runtime.PACKAGES:
            print(json.dumps({"missing": missing}))
            return 3
        traceback.print_exc()
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        print(json.dumps({"failed": reason}))
        return 4
    loaded = {module.partition(".")[0] for module in sys.modules}
    if foreign := sorted(loaded & {*_FOREIGN} - {*runtime.PACKAGES}):
        raise SystemExit(f"run_{name} has imported {', '.join(foreign)}")
    versions = {
        module: getattr(sys.modules[module], "__version__", "unknown")
        for module in runtime.PACKAGES
        if module in sys.modules
    }
    print(json.dumps({"versions": {"python": platform.python_version(), **versions}}))
    return 0


def _embed(runtime: Any, model: str, jobs: list[str]) -> None:
    embed = runtime.load(model)
    for source, target, size in zip(jobs[::3], jobs[1::3], jobs[2::3], strict=True):
        pictures = np.load(source, mmap_mode="r", allow_pickle=False)
        rows = in_batches(embed, pictures, int(size))
        with Path(target).open("wb") as file:
            np.save(file, rows, allow_pickle=False)


def in_batches(
    embed: Callable[[np.ndarray], np.ndarray], pictures: np.ndarray, size: int
) -> np.ndarray:
    """The rows of all pictures, ``size`` at a time; the last batch may be smaller."""
    starts = range(0, len(pictures), size)
    rows = [np.asarray(embed(np.ascontiguousarray(pictures[i : i + size]))) for i in starts]
    return np.concatenate(rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
