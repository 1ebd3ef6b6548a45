"""Data sets as TFDS builders: one folder each, named as the data set."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from pgfl_jax.errors import UserError

if TYPE_CHECKING:
    import tensorflow_datasets as tfds


class UnknownDatasetError(UserError):
    """No such data set, or no such configuration of it; the message lists what there is."""


def available_datasets() -> list[str]:
    """Names of the data sets in this folder: NAME/NAME_dataset_builder.py."""
    files = [file for folder in __path__ for file in Path(folder).glob("*/*_dataset_builder.py")]
    return sorted(file.parent.name for file in files)


def load_builder(name: str, data_dir: str) -> "tfds.core.DatasetBuilder":
    """Makes the builder of a data set; nothing is read, rendered or written yet.

    Args:
        name: "folder/config", as in "synthetic_occluded_reid/demo"; the first config without one.
        data_dir: where prepared data sets are kept.

    Returns:
        The builder; `download_and_prepare()` prepares the data unless it is there already.

    Raises:
        UnknownDatasetError: the folder or the config does not exist.
    """
    folder, _, config = name.partition("/")
    if folder not in available_datasets():
        known = ", ".join(available_datasets())
        raise UnknownDatasetError(f"unknown data set {folder!r}; available: {known}")
    module = importlib.import_module(f"{__name__}.{folder}.{folder}_dataset_builder")
    configs = [entry.name for entry in module.Builder.BUILDER_CONFIGS]
    if config and config not in configs:
        raise UnknownDatasetError(
            f"data set {folder!r} has no config {config!r}; available: {', '.join(configs)}"
        )
    return module.Builder(config=config or None, data_dir=data_dir)
