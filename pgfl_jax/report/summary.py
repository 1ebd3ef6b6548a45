"""A run in a screenful: network, data, checkpoints, scores."""

import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pgfl_jax.checkpoint import best_step, checkpoint_steps
from pgfl_jax.config import Config, ConfigError
from pgfl_jax.models.backbones import BACKBONES
from pgfl_jax.report.manifest import read_config, read_json
from pgfl_jax.report.writers import STEP_SUFFIX, score_table

# What the heading of its scores says about a checkpoint; empty: the newest.
CHECKPOINTS = {
    "": "",
    "best": ", the best",
    "step": ", chosen by its number",
    "untrained": ", untrained",
}


def describe_run(workdir: Path) -> str:
    """The facts of a run as text for the terminal.

    Raises:
        FileNotFoundError: the folder holds no run.
        ConfigError: a file of the run is damaged, or from a newer version.
        CheckpointError: the score of a checkpoint is damaged.
    """
    config, path = read_config(workdir), workdir / "manifest.json"
    manifest = read_json(path)
    try:
        facts = dict(run_facts(config, manifest)) | {"checkpoints": _checkpoints(workdir)}
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: not the manifest of a run; put a copy back") from error
    width = max(map(len, facts))
    lines = [f"{name:<{width}}  {value}" for name, value in facts.items()]
    scores = read_results(workdir)
    for suffix, title in CHECKPOINTS.items():
        chosen = [result for path, result in scores.items() if checkpoint_of(path) == suffix]
        results = sorted(chosen, key=_step)
        for step, scored in itertools.groupby(results, _step):
            lines += ["", f"scores at step {step}{title}", score_table([*scored])]
    return "\n".join([str(workdir), *lines])


def read_results(workdir: Path) -> dict[Path, dict[str, Any]]:
    """The scores that a run's folder holds, by their files.

    Raises:
        ConfigError: a file is damaged, or has no scores.
    """
    # results/occluded.json, results/occluded.best.json …
    paths = sorted((workdir / "results").glob("[!.]*.json"))  # macOS adds ._occluded.json
    scores = {path: result for path in paths if _is_result(result := read_json(path))}
    for path, result in scores.items():
        _check_scores(path, result)
    return scores


def _is_result(content: Any) -> bool:
    """Whether a JSON file beside the results is one of them."""
    return isinstance(content, Mapping) and {"step", "protocol"} <= content.keys()


def _check_scores(path: Path, result: Mapping[str, Any]) -> None:
    """ConfigError for a result without scores; names the file."""
    try:
        score_table([dict(result)])
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path}: has no scores; evaluate again (pgfl evaluate), or remove it"
        ) from error


def _step(result: Mapping[str, Any]) -> int:
    return result["step"]


def checkpoint_of(path: Path) -> str:
    """Which checkpoint a result is of: a key of :data:`CHECKPOINTS`."""
    last = path.stem.rpartition(".")[2]
    last = "step" if re.fullmatch(STEP_SUFFIX, last) else last
    return last if last in CHECKPOINTS else ""


def run_facts(config: Config, manifest: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Name and text of what is worth knowing about a run at a glance."""
    data, model, train = manifest["data"], config.model, config.train
    channels = BACKBONES[model.backbone].channels
    yield (
        "network",
        (
            f"{model.backbone}, {config.data.height}x{config.data.width} pixels, {model.dtype}, "
            f"{model.pooling} pooling, embeddings of {channels} numbers"
        ),
    )
    yield (
        "training set",
        (f"{data['name']}: {manifest['num_images']} images of {manifest['num_identities']} people"),
    )
    yield (
        "poses",
        (
            f"{data['pose_source']}, on {data['pose_coverage']:.0%} of the images"
            if config.trains_with_poses
            else "none: the main branch alone"
        ),
    )
    batch = f"{config.data.identities_per_batch}x{config.data.images_per_identity}"
    yield (
        "training",
        (
            f"{train.epochs:g} epochs, batches of {batch}, {config.optim.name} at "
            f"{config.optim.learning_rate:g}, seed {config.seed}"
        ),
    )
    versions = manifest["packages"]
    commit, changed, _ = (manifest["commit"] or "unknown").partition("+changes")
    yield (
        "made by",
        (
            f"commit {commit[:12]}{' with changes' if changed else ''}, jax {versions['jax']}, "
            f"{len(manifest['devices'])} x {manifest['devices'][0]}"
        ),
    )


def _checkpoints(workdir: Path) -> str:
    steps = checkpoint_steps(workdir)
    best = best_step(workdir)
    labels = {steps[-1]: "newest"} if steps else {}
    if best is not None:
        labels[best] = "newest and best" if best in labels else "best"
    return ", ".join(f"{s} ({labels[s]})" if s in labels else str(s) for s in steps) or "none yet"
