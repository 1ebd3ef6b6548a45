"""Data sets as TFDS builders: one folder each, with the name of the data set."""

import contextlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from input_pipeline.builders.source import signature
from input_pipeline.errors import DataError
from pgfl_jax.command_line import writable_folder
from pgfl_jax.errors import UserError

if TYPE_CHECKING:
    import tensorflow_datasets as tfds


class UnknownDatasetError(UserError):
    """No such data set, or no such configuration of it; the message lists the available ones."""


def available_datasets() -> list[str]:
    """Names of the data sets in this folder: NAME/NAME_dataset_builder.py."""
    files = [file for folder in __path__ for file in Path(folder).glob("*/*_dataset_builder.py")]
    return sorted(file.parent.name for file in files)


def load_builder(name: str, data_dir: str, manual_dir: str = "") -> "tfds.core.DatasetBuilder":
    """Make the builder of a data set, without preparing it.

    Args:
        name: "folder/config", such as "synthetic_occluded_reid/demo"; the first config if omitted.
        data_dir: folder of prepared data sets.
        manual_dir: the user's own folder; only for builders that find their configs in it, by a
            class method ``make_config(name, manual_dir)``.

    Returns:
        The builder; :func:`prepared_builder` also prepares it.

    Raises:
        UnknownDatasetError: the folder or the config does not exist.
        DataError: the description of the prepared data is missing or damaged.
    """
    folder, _, config = name.partition("/")
    if folder not in available_datasets():
        known = ", ".join(available_datasets())
        raise UnknownDatasetError(f"unknown data set {folder!r}; available: {known}")
    module = importlib.import_module(f"{__name__}.{folder}.{folder}_dataset_builder")
    if hasattr(module.Builder, "make_config"):
        found = module.Builder.make_config(config, manual_dir)
        with _description(name, data_dir):
            return module.Builder(config=found, data_dir=data_dir)
    configs = [entry.name for entry in module.Builder.BUILDER_CONFIGS]
    if config and config not in configs:
        raise UnknownDatasetError(
            f"data set {folder!r} has no config {config!r}; available: {', '.join(configs)}"
        )
    with _description(name, data_dir):
        return module.Builder(config=config or None, data_dir=data_dir)


@contextlib.contextmanager
def _description(name: str, data_dir: str) -> Iterator[None]:
    """DataError if TFDS cannot read, in this context, what it wrote about a prepared data set."""
    from google.protobuf import json_format

    try:
        yield
    except (OSError, ValueError, AssertionError, json_format.Error) as error:
        folder = Path(data_dir) / name
        if not folder.exists():
            raise
        raise DataError(
            f"{folder}: its dataset_info.json is missing or damaged; delete the folder, and the "
            "data set is prepared again"
        ) from error


def prepared_builder(name: str, data_dir: str, manual_dir: str = "") -> "tfds.core.DatasetBuilder":
    """The builder of a data set that is ready to be read; it is prepared now if necessary.

    Args:
        name: see :func:`load_builder`.
        data_dir: folder of prepared data sets.
        manual_dir: the user's copy: the data set's folder or zip archive, or a folder that contains
            it. It is not needed once the data are prepared, except for a builder with
            ``make_config`` (the user's own table), which is read each time to notice changes.

    Raises:
        UnknownDatasetError: the data set or its config does not exist.
        DataError: the copy is missing or faulty; the message says so in one line.
    """
    builder = load_builder(name, data_dir, manual_dir)
    if not builder.data_path.exists():  # written elsewhere, and renamed when complete
        _check_source(builder, name, data_dir, manual_dir)
        writable_folder(Path(data_dir), "config.data.data_dir")
        from pgfl_jax.distributed.collectives import is_primary  # late, as they import JAX
        from pgfl_jax.distributed.devices import require_devices

        require_devices()
        if is_primary():
            print(f"preparing {builder.info.full_name} in {data_dir}", file=sys.stderr, flush=True)
        _prepare(builder, manual_dir)
    if not builder.info.splits:  # prepared by another process since the builder looked
        with _description(name, data_dir):
            builder.info.read_from_directory(builder.data_path)
    return builder


def other_source(builder: Any, manual_dir: str) -> str:
    """A warning if ``manual_dir`` does not hold what the data set was prepared from; else empty.

    A link that leads to another folder now is another copy.

    Args:
        builder: prepared. A user's own table is read each time, so it is never warned about.
        manual_dir: the copy given now; may be empty, or no longer exist.
    """
    metadata = builder.info.metadata or {}
    source = metadata.get("source", "")
    if not source or not manual_dir or hasattr(builder, "make_config"):
        return ""
    if not Path(source).is_absolute():  # so version 0.1 kept it; from where is not known
        return ""
    folder = builder.data_path.parent
    if Path(source).resolve() != Path(manual_dir).expanduser().resolve():
        return f"{folder} was prepared from {source}; delete it to prepare it from {manual_dir}"
    now = signature(Path(source), metadata.get("source_places", ()))
    if now and now != metadata.get("source_sha256", now):  # version 0.1 kept no signature
        return (
            f"{folder} was prepared from {source}, whose images or lists have changed since; "
            "delete it to prepare them"
        )
    return ""


def _check_source(builder: Any, name: str, data_dir: str, manual_dir: str) -> None:
    """DataError if the user has to provide the data set and did not."""
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS and not manual_dir:
        raise DataError(
            f"{name}: not prepared in {data_dir} yet; give --config.data.manual_dir=DIR, where DIR "
            f"holds {' '.join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())}"
        )


def _prepare(builder: Any, manual_dir: str) -> None:
    """Prepare without TFDS's messages and bars; its assertions become one-line errors.

    When several processes prepare the same set, the result of the first to finish is kept.
    """
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    # TFDS prints two lines to stdout about a download that does not happen.
    builder._log_download_bytes = builder._log_download_done = lambda: None
    config = tfds.download.DownloadConfig(manual_dir=manual_dir or None, try_download_gcs=False)
    try:
        builder.download_and_prepare(download_config=config)
    except AssertionError as error:
        raise DataError(f"{builder.info.full_name}: {' '.join(str(error).split())}") from error
    except OSError:
        if not builder.data_path.exists():
            raise
        builder.info.read_from_directory(builder.data_path)
