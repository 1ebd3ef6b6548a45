"""Inference on the CPU: every model of a run's artifacts against JAX and PyTorch.

    python -m benchmarks.inference runs/demo --rounds=5 --seconds=2

Prints one JSON line per side: the latency of one picture and the pictures per second in batches of
32, each the median over the rounds. Each side runs in a process of its own with the same number of
threads; the sides take turns, so that a slow minute of the machine hits all of them. Reads the
artifacts in RUN/export (``pgfl export``), or in ``--artifacts``. The sides are

- each model file on each of its runtimes;
- ``jax``: the run itself, compiled, with its parameters on the device;
- ``torch compiled``: the network of the artifact ``torch`` after ``torch.compile``;
- ``torch.onnx on onnxruntime``: the file that PyTorch's own exporter makes of that network.
"""

import argparse
import functools
import importlib
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from pgfl_jax.command_line import guarded, user_path
from pgfl_jax.errors import UserError
from pgfl_jax.export.running import arranged
from pgfl_jax.export.verify import PREPROCESSING, PROBE, RECORD, read_record

BATCHES = (1, 32)

Embed = Callable[[np.ndarray], np.ndarray]
Make = Callable[[], Embed]


def load_model(runtime: str, path: Path) -> Embed:
    """The function of a model file on a runtime."""
    return importlib.import_module(f"pgfl_jax.export.runtimes.run_{runtime}").load(str(path))


def load_jax(run: Path) -> Embed:
    """The function of the run itself, for (N, H, W, 3) uint8."""
    import jax

    import pgfl_jax

    embedder = pgfl_jax.load(run, dtype="float32")
    variables, apply = jax.device_put(embedder.variables), jax.jit(embedder.apply)
    return lambda pictures: np.asarray(apply(variables, pictures))


def _network(folder: Path) -> Any:
    """The network of the artifact ``torch``."""
    from pgfl_jax.export import torch_model

    return torch_model.load(folder)


def load_compiled(folder: Path) -> Embed:
    """The function of the artifact ``torch`` after ``torch.compile``."""
    import torch

    network = torch.compile(_network(folder))

    def embed(pictures: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.tensor(pictures)).numpy()

    return embed


def load_torch_onnx(folder: Path) -> Embed:
    """The function of the ONNX file that PyTorch's own exporter makes of the artifact ``torch``."""
    import torch

    network = _network(folder)
    example = torch.zeros((2, *network.row_shape), dtype=network.input_dtype)
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        # The exporter by tracing, which needs no further package, is deprecated.
        warnings.simplefilter("ignore")
        path = Path(scratch) / "model.onnx"
        torch.onnx.export(
            network,
            (example,),
            path,
            dynamo=False,
            opset_version=18,
            input_names=["images"],
            output_names=["embeddings"],
            dynamic_axes={"images": {0: "batch"}, "embeddings": {0: "batch"}},
        )
        return load_model("onnxruntime", path)


def sides(run: Path, artifacts: Path) -> Iterator[tuple[dict[str, Any], Make, np.ndarray]]:
    """What to print of each side, what makes its function, and 32 pictures as it takes them.

    Raises:
        UserError: there are no artifacts.
    """
    folders = sorted(path.parent for path in artifacts.glob(f"*/{RECORD}"))
    if not folders:
        raise UserError(f"{artifacts}: holds no artifacts; make them with pgfl export")
    for folder in folders:
        with np.load(folder / PROBE, allow_pickle=False) as probe:
            pictures = probe["pictures"]
        rows = arranged(pictures, read_record(folder, PREPROCESSING))
        record = read_record(folder, RECORD)
        for model in record["models"]:
            for runtime in model["runtimes"]:
                about = {
                    "side": f"{record['format']}/{model['file']} on {runtime}",
                    "precision": model["precision"],
                    "bytes": model["bytes"],
                }
                yield about, functools.partial(load_model, runtime, folder / model["file"]), rows
        if record["format"] == "torch":
            for name, make in (
                ("torch compiled", load_compiled),
                ("torch.onnx on onnxruntime", load_torch_onnx),
            ):
                yield {"side": name, "precision": "float32"}, functools.partial(make, folder), rows
    yield {"side": "jax", "precision": "float32"}, functools.partial(load_jax, run), pictures


def _serve(connection: Connection, make: Make, pictures: np.ndarray, seconds: float) -> None:
    """Answer each size of batch with the seconds of one call; the median over a turn."""
    try:
        embed = make()
        for size in BATCHES:  # compiles
            embed(np.ascontiguousarray(pictures[:size]))
    except Exception as error:
        connection.send(f"{type(error).__name__}: {' '.join(str(error).split())}"[:200])
        return
    connection.send(None)
    while size := connection.recv():
        batch = np.ascontiguousarray(pictures[:size])
        embed(batch)  # after the other sides' turns nothing is in the caches
        times, end = [], time.perf_counter() + seconds
        while not times or time.perf_counter() < end:
            start = time.perf_counter()
            embed(batch)
            times.append(time.perf_counter() - start)
        connection.send(statistics.median(times))


def measure(
    makes: Mapping[str, tuple[Make, np.ndarray]], rounds: int, seconds: float
) -> tuple[dict[str, dict[int, list[float]]], dict[str, str]]:
    """Let the sides take turns, each in its own process.

    Args:
        makes: the function and the pictures of each side.
        rounds: turns of each side at each size of batch.
        seconds: of a turn.

    Returns:
        For each side the seconds of a call in each round, by the size of the batch; and why a side
        does not run, for those that do not.
    """
    context = multiprocessing.get_context("spawn")
    running, errors = {}, {}
    for name, (make, pictures) in makes.items():  # one by one, since most of them compile
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, make, pictures, seconds))
        process.start()
        theirs.close()
        try:
            error = ours.recv()
        except EOFError:
            error = "the process ended"
        if error is None:
            running[name] = ours, process
        else:
            errors[name] = error
    found: dict[str, dict[int, list[float]]] = {n: {b: [] for b in BATCHES} for n in running}
    for _ in range(rounds):
        for size in BATCHES:
            for name, (ours, _) in running.items():
                ours.send(size)
                found[name][size].append(ours.recv())
    for ours, process in running.values():
        ours.send(0)
        process.join()
    return found, errors


def main() -> int:
    """Parse the options, measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inference", description=__doc__)
    parser.add_argument("run", type=user_path, help="the run's folder")
    parser.add_argument("--artifacts", type=user_path, help="default: RUN/export")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn")
    flags = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    every = list(sides(flags.run, flags.artifacts or flags.run / "export"))
    makes = {about["side"]: (make, pictures) for about, make, pictures in every}
    found, errors = measure(makes, flags.rounds, flags.seconds)
    for about, _, _ in every:
        name = about["side"]
        if name in errors:
            print(json.dumps({**about, "error": errors[name]}), flush=True)
            continue
        one, many = (statistics.median(found[name][size]) for size in BATCHES)
        speed = {
            "latency_ms": round(1e3 * one, 3),
            "pictures_per_second": round(BATCHES[1] / many, 1),
        }
        print(json.dumps({**about, **speed}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
