"""What a run was made of: enough to tell two runs apart, or to repeat one."""

import json
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from pgfl_jax.reporting.writers import write_json

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


def write_manifest(workdir: Path, **facts: Any) -> None:
    """Write ``manifest.json``: versions, source commit, devices, and the given facts."""
    environment = {
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "commit": _commit(),
        "devices": [device.device_kind for device in jax.devices()],
        "platform": jax.default_backend(),
        "processes": jax.process_count(),
    }
    write_json(workdir / "manifest.json", environment | facts)


def read_manifest(workdir: Path) -> dict[str, Any]:
    """The manifest of a run.

    Raises:
        FileNotFoundError: the folder holds no run.
    """
    path = workdir / "manifest.json"
    if not path.exists():
        raise FileNotFoundError(f"{path}: not found; is {workdir} the workdir of a training run?")
    return json.loads(path.read_text(encoding="utf-8"))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
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
