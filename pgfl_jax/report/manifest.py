"""What went into a run: enough to distinguish two runs, or to repeat one."""

import dataclasses
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from pgfl_jax.checkpoint import checkpoint_steps, stored_options
from pgfl_jax.config import Config, ConfigError, DataConfig, current_dataset_name, stored_config
from pgfl_jax.errors import UserError
from pgfl_jax.export.verify import RECORD
from pgfl_jax.report.writers import write_json

# Options that may differ between a run and its continuation: they do not affect the parameters.
FREE_OPTIONS = (
    "compilation_cache",
    "profile",
    "data.data_dir",
    "data.manual_dir",
    "data.memory_gib",
    "data.pose.files",  # the poses themselves are compared
    "mesh.",
    "model.remat",
    "train.log_every",
    "train.eval_every",
    "train.checkpoint_every",
    "train.pictures",
    "eval.",
)

# Fingerprints that runs of older versions lack.
_NOT_ALWAYS_KEPT = ("cameras_sha256",)

SOURCES = ("pgfl_jax", "input_pipeline")

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "tensorflow-cpu",
    "tensorflow",
    "tensorflow-datasets",
    "clu",
    "ml_collections",
)


# Options that may differ from process to process, since they depend on the machine.
LOCAL_OPTIONS = ("data.data_dir", "data.manual_dir", "data.memory_gib", "data.pose.files")


def common_facts(config: Config) -> dict[str, Any]:
    """What must be equal in all processes of a run, by the name that an error gives it."""
    options = config.flat_options().items()
    root = Path(__file__).parents[2]
    sources = sorted(path for name in SOURCES for path in (root / name).rglob("*.py"))
    return {
        **{f"config.{name}": value for name, value in options if name not in LOCAL_OPTIONS},
        **{f"the version of {name}": _version(name) for name in PACKAGES},
        "the program's source code": [
            [str(path.relative_to(root)), path.read_text(encoding="utf-8")] for path in sources
        ],
    }


def write_run(workdir: Path, config: Config, facts: Mapping[str, Any]) -> None:
    """Write ``config.json``, every option by its dotted name, and ``manifest.json``.

    Args:
        workdir: the run's folder.
        config: its configuration.
        facts: added to versions, source commit and devices in the manifest; ``data`` among them.
    """
    environment = {
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "commit": source_commit(),
        "devices": [device.device_kind for device in jax.devices()],
        "platform": jax.default_backend(),
        "processes": jax.process_count(),
        "jax_default_matmul_precision": jax.config.values["jax_default_matmul_precision"],
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        "seed": config.seed,
    }
    write_json(workdir / "config.json", config.flat_options())
    write_json(workdir / "manifest.json", environment | dict(facts))


def read_config(workdir: Path) -> Config:
    """The configuration that a run stored; options that its version lacked have their defaults.

    Raises:
        ConfigError: the stored configuration is damaged, or from a newer version.
        FileNotFoundError: the folder holds no run.
    """
    path = workdir / "config.json"
    options = read_json(path)
    try:
        return stored_config(options)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}; the run is from another version") from error


def without_places(config: Config) -> Config:
    """The configuration without the folders of data, which mean nothing on another machine."""
    data = dataclasses.replace(
        config.data, data_dir=DataConfig.data_dir, manual_dir=DataConfig.manual_dir
    )
    return dataclasses.replace(config, data=data)


def first_difference(
    stored: Config, config: Config, free: tuple[str, ...] = FREE_OPTIONS
) -> tuple[str, Any, Any] | None:
    """The first option, by name, in which two configurations differ, with its two values.

    Args:
        stored: one configuration, whose value comes first.
        config: the other.
        free: how the names of options begin that may differ.
    """
    values = stored.flat_options()
    for name, new in sorted(config.flat_options().items()):
        if values[name] != new and not name.startswith(free):
            return name, values[name], new
    return None


def check_same_options(workdir: Path, config: Config) -> None:
    """Make sure that ``config`` may continue or evaluate the run in ``workdir``.

    Raises:
        ConfigError: an option that the parameters depend on differs; names it.
        FileNotFoundError: the folder holds no run.
    """
    if difference := first_difference(read_config(workdir), config):
        name, stored, new = difference
        raise ConfigError(
            f"config.{name} = {new!r}: {workdir} holds a run with {stored!r}; "
            "use that value to go on with it, or another --workdir"
        )


def check_same_run(workdir: Path, step: int, config: Config) -> None:
    """Make sure that a checkpoint is of the run that ``config.json`` describes.

    Raises:
        ConfigError: an option that the parameters depend on differs; names it. One of them was
            edited, or brought from another run.
    """
    options = stored_options(workdir, step)
    if options is None:
        return
    if difference := first_difference(stored_config(options), config):
        name, stored, here = difference
        raise ConfigError(
            f"{workdir / 'checkpoints' / str(step)}: was trained with config.{name} = {stored!r}, "
            f"but {workdir / 'config.json'} says {here!r}; put back the one that belongs to this "
            "run"
        )


def check_no_other_run(workdir: Path, config: Config) -> None:
    """Make sure that a run without checkpoints is not overwritten by another one.

    Raises:
        ConfigError: the folder holds a run of another configuration.
    """
    if (workdir / "config.json").exists():
        check_same_options(workdir, config)


def check_nothing_lost(workdir: Path, config: Config) -> None:
    """Make sure that a new run overwrites no other files, and no run that lost its checkpoints.

    A run that was killed before its first checkpoint was complete may start over.

    Raises:
        ConfigError: the folder holds a run of another configuration.
        UserError: it holds files named like those of a run, but no run; or a run that has lost its
            checkpoints. Names them, and what to do.
    """
    check_no_other_run(workdir, config)
    results = [
        path
        for path in sorted((workdir / "results").glob("*.json"))
        if not path.name.endswith(".untrained.json")  # which need no run
    ]
    if not (workdir / "config.json").exists():
        names = ("manifest.json", "metrics.jsonl", "training_images.npy", "checkpoints/deleted")
        for path in (*results, *map(workdir.joinpath, names)):
            if path.exists():
                raise UserError(
                    f"{path}: a run would overwrite it, but {workdir} holds no config.json; move "
                    "it away, or use another --workdir"
                )
    # Each save waits for the one before, and an evaluation comes with a save.
    first = min(config.train.eval_every, config.train.checkpoint_every)
    scored = [step for path in results if (step := _step_of(read_json(path))) > 0]
    if steps := scored + [step for step in _logged_steps(workdir) if step > first]:
        raise UserError(
            f"{workdir}: holds a run of {max(steps)} steps or more without its checkpoints; bring "
            f"{workdir / 'checkpoints'} back, or use another --workdir (to start over in this one, "
            "empty it)"
        )


def _step_of(result: Any) -> int:
    """The step of a result; 0 for anything else."""
    step = result.get("step") if isinstance(result, dict) else None
    return step if isinstance(step, int) else 0


def _logged_steps(workdir: Path) -> list[int]:
    """The steps that ``metrics.jsonl`` has lines of; damaged lines are ignored."""
    path = workdir / "metrics.jsonl"
    lines = path.read_bytes() if path.exists() else b""
    return [int(step) for step in re.findall(rb'^\{"step": ([0-9]+)', lines, re.MULTILINE)]


def read_run(
    workdir: Path, config: Config, data: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The manifest of a run that ``config`` and ``data`` may continue or evaluate.

    Args:
        workdir: the run's folder.
        config: must equal the run's, except for options that do not affect its parameters.
        data: fingerprints of the training data, which must equal the run's; None: not compared.

    Raises:
        ConfigError: an option or a fingerprint differs; names it. Or the manifest is damaged.
        FileNotFoundError: the folder holds no run.
    """
    check_same_options(workdir, config)
    path = workdir / "manifest.json"
    manifest = read_json(path)
    kinds = {"data": dict, "num_identities": int, "num_images": int}
    if not isinstance(manifest, dict) or not all(
        isinstance(manifest.get(name), kind) for name, kind in kinds.items()
    ):
        raise ConfigError(f"{path}: not the manifest of a run; put a copy back")
    for name, new in (data or {}).items():
        if name == "pose_coverage":  # the poses and the threshold decide it; both are compared
            continue
        old = manifest["data"].get(name, new if name in _NOT_ALWAYS_KEPT else None)
        if name == "name":
            old = current_dataset_name(old)
        if old != new:
            option = "data.pose.files" if name.startswith("pose") else "data.dataset"
            old, new = (str(value)[:12] for value in (old, new))  # digests are long
            raise ConfigError(
                f"config.{option}: {workdir} was trained on other data ({name} was {old}, now "
                f"{new}); restore that data, or use another --workdir"
            )
    return manifest


def read_json(path: Path) -> Any:
    """A JSON file of a run; a ConfigError if it is damaged, a FileNotFoundError if not there."""
    if not path.exists():
        if (path.parent / RECORD).exists():
            raise FileNotFoundError(
                f"{path.parent}: an exported artifact, not a training run; its README.md describes "
                "it, and pgfl verify checks it"
            )
        if checkpoint_steps(path.parent):
            raise FileNotFoundError(
                f"{path}: not found, though {path.parent} holds checkpoints; put a copy of it "
                "back, or use another --workdir"
            )
        raise FileNotFoundError(
            f"{path}: not found; is {path.parent} the folder of a training run?"
        )
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path}: damaged ({error})") from error


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def source_commit() -> str | None:
    """Commit of the source tree, with ``+changes`` if files differ from it; None outside git."""
    git = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--dirty=+changes",
        "--abbrev=40",
        "--exclude=*",
    ]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
