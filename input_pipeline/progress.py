"""The progress bar of long work."""

from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress(items: Iterable, task: str, **options: Any) -> tqdm:
    """Iterate with a bar on stderr, which goes when it is done; none where nobody would see it."""
    return tqdm(items, desc=task, leave=False, disable=None, **options)
