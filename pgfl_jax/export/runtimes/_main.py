"""The command line of every runtime: FOLDER INPUT.npy OUTPUT.npy BATCH."""

import json
import sys
from collections.abc import Callable
from types import ModuleType

import numpy as np


def main(load: Callable[[str], Callable[[np.ndarray], np.ndarray]], *packages: ModuleType) -> None:
    """Embed the rows of a file in batches, and print the packages' versions as JSON."""
    folder, source, target, size = sys.argv[1:]
    images, step, embed = np.load(source, mmap_mode="r"), int(size), load(folder)
    rows = [embed(images[start : start + step]) for start in range(0, len(images), step)]
    np.save(target, np.concatenate(rows))
    versions = {module.__name__: module.__version__ for module in (np, *packages)}
    print(json.dumps({"python": sys.version.split()[0], **versions}))
