"""What a large data set costs before step 1: preparation, catalogue, memory, reading on demand.

    python -m benchmarks.start_up --images=126441 --folder=/tmp/start_up

Makes a data set of noise in MSMT17's layout (20 kB per image, as in MSMT17) and prepares it. Then
opens the training split in fresh processes, once held in memory and once read on demand. Prints one
JSON line per measurement; memory is what opening the split and reading 100 batches add. An existing
folder is reused; it takes twice the size of the images.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import psutil
from tqdm import tqdm

from pgfl_jax.command_line import guarded, user_path

IDENTITIES, CAMERAS = 1041, 15
BATCHES = 100


def fabricate(folder: Path, images: int) -> None:
    """Write the files of MSMT17_V1: ``images`` for training, and two test identities."""
    if folder.exists():
        return
    root = folder / "MSMT17_V1"
    rng = np.random.default_rng(0)
    noise = rng.normal(128, 30, (50, 256, 128, 3)).clip(0, 255).astype(np.uint8)
    # Few distinct pictures; bytes after the end marker make each file unique.
    pictures = [cv2.imencode(".jpg", one, (cv2.IMWRITE_JPEG_QUALITY, 83))[1] for one in noise]
    numbers = itertools.count()
    lists = {"train": images - 1, "val": 1, "query": 2, "gallery": 4}
    for name, count in lists.items():
        part = "train" if name in ("train", "val") else "test"
        lines = []
        for i in tqdm(itertools.islice(numbers, count), name, count, disable=count < 100):
            identity, camera = i % (IDENTITIES if part == "train" else 2), i % CAMERAS + 1
            path = f"{identity:04d}/{identity:04d}_{i:06d}_{camera:02d}_0303morning_0001_0.jpg"
            file = root / part / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(
                pictures[i % len(pictures)].tobytes() + name.encode() + i.to_bytes(4, "big")
            )
            lines.append(f"{path} {identity}\n")
        (root / f"list_{name}.txt").write_text("".join(lines), encoding="utf-8")


def prepare(folder: Path) -> dict:
    """Prepare the files as a TFDS data set."""
    from input_pipeline.builders import prepared_builder

    started = time.perf_counter()
    prepared_builder("msmt17/v1", str(folder / "prepared"), str(folder))
    return {"measurement": "preparation", "seconds": round(time.perf_counter() - started, 1)}


def start(folder: Path, memory_gib: float) -> dict:
    """Open the training split and make batches; returns the line to print."""
    from configs import msmt17
    from input_pipeline.from_config import open_builder, open_catalog, training_data
    from pgfl_jax.config import parse_config

    values = msmt17.get_config()
    values.update_from_flattened_dict(
        {"data.data_dir": str(folder / "prepared"), "data.memory_gib": memory_gib}
    )
    config = parse_config(values)
    builder = open_builder(config, "msmt17/v1")
    for path in builder.info.splits["train"].filepaths:  # read from disk, not from the page cache
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    before = _anonymous_mib()
    times = [time.perf_counter()]
    open_catalog(builder, "train", memory_gib=memory_gib)
    times.append(time.perf_counter())
    batches = training_data(config).batches(0)
    times.append(time.perf_counter())
    next(batches)
    times.append(time.perf_counter())
    for _ in itertools.islice(batches, BATCHES):
        pass
    times.append(time.perf_counter())
    memory = _anonymous_mib() - before
    catalogue, whole, first, others = np.diff(times)
    return {
        "measurement": f"start with data.memory_gib={memory_gib:g}",
        "catalogue_seconds": round(catalogue, 1),
        "catalogue_fingerprints_and_checks_seconds": round(whole, 1),
        "first_batch_seconds": round(first, 2),
        "images_per_second": round(BATCHES * config.data.batch_size / others),
        "memory_mib": round(memory),
    }


def _anonymous_mib() -> float:
    """Memory that the system cannot reclaim, which excludes the pages of mapped files."""
    memory = psutil.Process().memory_info()
    return (memory.rss - memory.shared) / 2**20


def main() -> None:
    """Parse the options, measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.start_up", description=__doc__)
    parser.add_argument("--images", type=int, default=126_441)
    parser.add_argument("--folder", type=user_path, required=True, help="where to put the data set")
    flags = parser.parse_args()
    fabricate(flags.folder, flags.images)
    context = multiprocessing.get_context("spawn")
    work = [(prepare, ()), (start, (1000.0,)), (start, (0.0,))]
    for measure, arguments in work:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            result = pool.submit(measure, flags.folder, *arguments).result()
        print(json.dumps({"images": flags.images, **result}), flush=True)


if __name__ == "__main__":
    sys.exit(guarded(main))
