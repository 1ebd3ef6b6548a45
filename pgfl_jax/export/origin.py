"""Where an artifact comes from: checkpoint, training, scores, versions, hardware."""

import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from pgfl_jax import __version__
from pgfl_jax.embedder import Embedder
from pgfl_jax.export.verify import checkpoint_sha256
from pgfl_jax.report.manifest import read_json


def checkpoint(embedder: Embedder) -> dict[str, Any]:
    """Run, step, parameters and digest; the run's name and the digest are None if unknown."""
    run = embedder.run
    return {
        "run": run.resolve().name if run else None,
        "step": embedder.step,
        "parameters": embedder.parameters,
        "sha256": checkpoint_sha256(run, embedder.step) if run else None,
    }


def training(embedder: Embedder) -> dict[str, Any] | None:
    """What the run was trained on, from its manifest; None if the run is unknown."""
    path = embedder.run and embedder.run / "manifest.json"
    if not path or not path.exists():
        return None
    manifest = read_json(path)
    data = manifest["data"]
    return {
        "dataset": data["name"],
        "images": manifest["num_images"],
        "identities": manifest["num_identities"],
        "images_sha256": data["images_sha256"],
        "poses": data["pose_source"] if embedder.config.trains_with_poses else "none",
        "pretrained_sha256": manifest.get("pretrained_sha256"),
        "commit": manifest["commit"],
    }


def scores(embedder: Embedder) -> list[dict[str, Any]]:
    """The stored results of this checkpoint and these parameters, with their intervals."""
    if embedder.run is None:
        return []
    found = []
    for path in sorted((embedder.run / "results").glob("[!.]*.json")):
        result = read_json(path)
        mine = {"step": embedder.step, "embedding": "main", "parameters": embedder.parameters}
        if isinstance(result, dict) and mine.items() <= result.items():
            found.append(result)
    return found


def config(embedder: Embedder) -> dict[str, Any]:
    """The run's options by their dotted names, without the folders of this machine."""
    local = "data.data_dir", "data.manual_dir", "data.pose.files", "compilation_cache"
    options = embedder.config.flat_options().items()
    return {name: value for name, value in options if name not in local}


def versions() -> dict[str, str]:
    """Of what computed the reference and wrote the models."""
    names = "jax", "jaxlib", "flax", "numpy", "pillow", "onnx", "tensorflow-cpu", "tensorflow"
    found = {"pgfl_jax": __version__, "python": platform.python_version()}
    for name in (*names, "torch"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """Of the machine that the checks ran on."""
    return {"machine": platform.machine(), "processor": _processor(), "cores": os.cpu_count()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()


def write_json(path: Path, content: Any) -> None:
    """Write a file of an artifact."""
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
