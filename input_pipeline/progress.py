"""The progress bar of long work."""

from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress(items: Iterable, task: str, **options: Any) -> tqdm:
    """Iterate with a bar on stderr, removed at the end; without a terminal there is no bar."""
    return tqdm(items, desc=task, leave=False, disable=None, **options)
