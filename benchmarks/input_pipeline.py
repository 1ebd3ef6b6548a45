"""Images per second: this project's tf.data pipeline against a PyTorch DataLoader.

    python -m benchmarks.input_pipeline --dataset=synthetic_occluded_reid/demo

Both sides read the same encoded images from memory and do the same work (see
`benchmarks.torch_loader`), with one thread or worker per core. They take turns. Each turn is a
fresh process that warms up before it is timed, while the other side does not run.

Prints one JSON line per side and one with their ratio. Run it on an idle machine; on a busy one,
compare the processor time per image. Memory is the proportional set size of the process and its
workers. On both sides it includes the imports of the configuration, such as JAX.
"""

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import cv2
import numpy as np
import psutil
from jaxtyping import Int
from tqdm import tqdm

from configs import default
from input_pipeline.catalog import Catalog
from input_pipeline.cores import available_cores
from pgfl_jax.command_line import guarded
from pgfl_jax.config import Config, parse_config
from pgfl_jax.errors import UserError

WARM_UP_BATCHES = 20  # more than either side prefetches
MEMORY_SAMPLES = 10


def tf_data_batches(catalog: Catalog, config: Config) -> Iterator[Any]:
    """The batches of a training run of this project, normalised and erased as a device would."""
    from input_pipeline.pipeline import train_batches
    from pgfl_jax.network_input import network_input

    for batch in train_batches(catalog, config.data, map_shape=config.map_shape, seed=config.seed):
        yield {**batch, "images": network_input(batch, config.data).block_until_ready()}


def torch_batches(catalog: Catalog, config: Config) -> Iterator[Any]:
    """The same batches from a PyTorch DataLoader."""
    from benchmarks.torch_loader import train_loader

    workers = available_cores()
    shape, seed = config.map_shape, config.seed
    return iter(train_loader(catalog, config.data, map_shape=shape, seed=seed, workers=workers))


SIDES: dict[str, Callable[[Catalog, Config], Iterator[Any]]] = {
    "tf.data": tf_data_batches,
    "torch": torch_batches,
}


@dataclasses.dataclass(frozen=True)
class Turn:
    """The measurements of one turn of one side."""

    images_per_second: float
    cpu_us_per_image: float
    memory_mib: float


def compare(catalog: Catalog, config: Config, *, seconds: float, rounds: int) -> list[dict]:
    """Time both sides alternately.

    Args:
        catalog: images in memory.
        config: size of the images, batch and augmentation.
        seconds: length of a turn.
        rounds: turns per side.

    Returns:
        The lines to print: one dict per side, then one with their ratio.
    """
    turns: dict[str, list[Turn]] = {name: [] for name in SIDES}
    plan = [name for _ in range(rounds) for name in SIDES]
    for name in tqdm(plan, desc="turns", unit="turn"):
        turns[name].append(in_fresh_process(take_turn, name, catalog, config, seconds))
    return summary(turns)


def in_fresh_process(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function in a new process; returns its result or raises its exception."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *args).result()


def take_turn(name: str, catalog: Catalog, config: Config, seconds: float) -> Turn:
    """Start a side, warm it up and time it, then measure its memory in steady state."""
    batches = SIDES[name](catalog, config)
    for _ in range(WARM_UP_BATCHES):
        next(batches)
    used = cpu_seconds()
    count, elapsed = take_batches(batches, seconds)
    used, images = cpu_seconds() - used, count * config.data.batch_size
    samples = []
    for _ in range(MEMORY_SAMPLES):  # not while timing, since summing the pages takes milliseconds
        next(batches)
        samples.append(memory_mib())
    return Turn(images / elapsed, 1e6 * used / images, max(samples))


def take_batches(batches: Iterator[Any], seconds: float) -> tuple[int, float]:
    """Take batches for at least ``seconds``; returns their number and the time it took."""
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        next(batches)
        count += 1
    return count, elapsed


def _processes() -> list[psutil.Process]:
    this = psutil.Process()
    return [this, *this.children(recursive=True)]


def cpu_seconds() -> float:
    """Processor time of this process and its children; other programs hardly affect it."""
    times = [process.cpu_times() for process in _processes()]
    return sum(each.user + each.system for each in times)


def memory_mib() -> float:
    """Proportional set size of this process and its children, or RSS where it is unavailable."""
    used = [process.memory_full_info() for process in _processes()]
    return sum(getattr(info, "pss", info.rss) for info in used) / 2**20


def summary(turns: dict[str, list[Turn]]) -> list[dict]:
    """The lines to print, from the turns by side; the ratio is the first side over the second."""
    rates = {name: [turn.images_per_second for turn in taken] for name, taken in turns.items()}
    lines: list[dict] = [
        {
            "name": name,
            "images_per_second": {
                "min": round(min(rates[name]), 1),
                "median": round(statistics.median(rates[name]), 1),
                "max": round(max(rates[name]), 1),
            },
            "cpu_us_per_image": round(statistics.median(turn.cpu_us_per_image for turn in taken)),
            "memory_mib": round(max(turn.memory_mib for turn in taken)),
            "cores": available_cores(),
            "versions": _versions(),
        }
        for name, taken in turns.items()
    ]
    first, second = rates.values()
    ratio = {
        "name": " / ".join(rates),
        "ratio_of_medians": round(statistics.median(first) / statistics.median(second), 2),
        "ratio_per_round": [round(a / b, 2) for a, b in zip(first, second, strict=True)],
    }
    return [*lines, ratio]


def _versions() -> dict[str, str]:
    names = ("numpy", "pillow", "tensorflow_cpu", "tensorflow", "torch")
    installed = {dist.name: dist.version for dist in importlib.metadata.distributions()}
    return {name: installed[name] for name in names if name in installed}


def load_catalog(config: Config, stored: str) -> Catalog:
    """The training split with its encoded images in memory.

    Args:
        config: names the data set, which is prepared if necessary.
        stored: sizes to re-encode the images at, as in :func:`stored_sizes`; "" keeps them.
    """
    from input_pipeline.builders import prepared_builder
    from input_pipeline.catalog import read_catalog

    builder = prepared_builder(config.data.dataset, config.data.data_dir, config.data.manual_dir)
    catalog = read_catalog(builder, "train")
    images = np.empty(len(catalog), object)
    images[:] = list(catalog.images)
    catalog = dataclasses.replace(catalog, images=images)
    return store_as(catalog, stored_sizes(stored, len(catalog))) if stored else catalog


def stored_sizes(text: str, count: int) -> Int[np.ndarray, "count 2"]:
    """Heights and widths, from "256x128", or "mixed" for boxes of many sizes and shapes.

    >>> stored_sizes("256x128", 2).tolist()
    [[256, 128], [256, 128]]

    Raises:
        UserError: ``text`` is neither.
    """
    if text == "mixed":
        rng = np.random.default_rng(0)
        heights = rng.integers(100, 401, count)
        return np.stack([heights, (heights * rng.uniform(0.3, 0.55, count)).astype(int)], axis=1)
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise UserError(f"--stored={text}: must be HEIGHTxWIDTH, such as 256x128, or mixed")
    return np.tile([int(height), int(width)], (count, 1))


def store_as(catalog: Catalog, sizes: Int[np.ndarray, "images 2"]) -> Catalog:
    """Re-encode the images as JPEG files with these heights and widths, and scale the poses."""
    images = np.empty(len(catalog), object)
    for i, (height, width) in enumerate(sizes.tolist()):
        image = cv2.imdecode(np.frombuffer(catalog.images[i], np.uint8), cv2.IMREAD_COLOR)
        if image is None:
            raise UserError(
                f"{catalog.filenames[i]}: the image cannot be decoded; replace the file"
            )
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
        images[i] = cv2.imencode(".jpg", image)[1].tobytes()
    scale = (sizes / catalog.image_sizes)[:, None, ::-1]
    keypoints = catalog.keypoints.copy()
    posed = keypoints.any(axis=(1, 2))
    keypoints[posed, :, :2] = ((keypoints[..., :2] + 0.5) * scale - 0.5)[posed]
    return dataclasses.replace(catalog, images=images, image_sizes=sizes, keypoints=keypoints)


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.input_pipeline", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--dataset", default="synthetic_occluded_reid/demo")
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--manual_dir", default="", help="the published files, to prepare them")
    parser.add_argument("--height", type=int, default=256, help="of the network's input")
    parser.add_argument("--width", type=int, default=128, help="of the network's input")
    parser.add_argument("--stored", default="", help="re-encode first: 256x128, or mixed")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a turn")
    parser.add_argument("--rounds", type=int, default=5, help="turns per side")
    return parser.parse_args(argv)


def run_config(options: argparse.Namespace) -> Config:
    """The configuration of a training run with these options."""
    values = default.get_config()
    for name in ("dataset", "data_dir", "manual_dir", "height", "width"):
        values.data[name] = getattr(options, name)
    return parse_config(values)


def main(argv: list[str] | None = None) -> None:
    """Prepare the data, time both sides and print."""
    options = parse_options(argv)
    for module in ("torch", "PIL"):
        if importlib.util.find_spec(module) is None:
            raise UserError(f"{module} is not installed: pip install -e '.[benchmark]'")
    config = run_config(options)
    catalog = in_fresh_process(load_catalog, config, options.stored)
    for line in compare(catalog, config, seconds=options.seconds, rounds=options.rounds):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    sys.exit(guarded(main))
