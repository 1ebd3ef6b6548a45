"""The training loop."""

import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from pgfl_jax.checkpoint import Checkpoints, check_path, has_checkpoint, open_checkpoints
from pgfl_jax.config import Config, ConfigError, current_dataset_name, oddities
from pgfl_jax.distributed.collectives import agreed_step, assert_same_everywhere, is_primary
from pgfl_jax.distributed.preemption import StopSignal
from pgfl_jax.distributed.sharding import make_mesh, shard_batch
from pgfl_jax.experiment import Experiment, Pretrained, read_pretrained
from pgfl_jax.report.manifest import (
    check_no_other_run,
    check_nothing_lost,
    check_same_options,
    check_same_run,
    read_run,
    write_run,
)
from pgfl_jax.report.profiler import Profiler
from pgfl_jax.report.step_log import StepLog
from pgfl_jax.report.training_images import TRAINING_IMAGES, write_training_images
from pgfl_jax.report.writers import say
from pgfl_jax.retrieval.evaluate import Evaluator
from pgfl_jax.retrieval.protocols import EvaluationData
from pgfl_jax.run_lock import check_held, check_unlocked
from pgfl_jax.train_state import TrainState
from pgfl_jax.train_step import make_train_step


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingData:
    """What the loop needs to know about a training set.

    Attributes:
        num_identities: number of classes.
        filenames: (N,) names, to which the ``indices`` of a batch point.
        batches: starts the endless stream of batches at a step: what the training step takes, and
            ``indices``; this process's rows of each.
        description: for the manifest: fingerprints of images, identities and poses, which must be
            the same when the run is resumed.
        origin: for the manifest: where images and poses come from, which may change.
        image_sha256: (N,) hex digests of the images, which must not be among the images scored.
        identities: (N,) numbers of the people, as in the data set's test splits.
    """

    num_identities: int
    filenames: np.ndarray
    batches: Callable[[int], Iterator[Mapping[str, np.ndarray]]]
    description: Mapping[str, Any]
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    image_sha256: Sequence[str] | np.ndarray = ()
    identities: Sequence[int] | np.ndarray = ()

    def facts(self) -> dict[str, Any]:
        """What the manifest says about the training set."""
        return {
            "num_identities": self.num_identities,
            "num_images": len(self.filenames),
            "data": dict(self.description),
            "origin": dict(self.origin),
        }


def begin(config: Config, workdir: Path, *, evaluates: bool) -> Pretrained | None:
    """Check what can be checked before any data are touched.

    An existing run must have this configuration. For a new run, and for the evaluation of an
    untrained network, the weights to start from are read.

    Args:
        config: the configuration.
        workdir: the run's folder.
        evaluates: whether the run is to be evaluated, not trained.

    Returns:
        The weights, if there are any to start from.

    Raises:
        CheckpointError: Orbax cannot write to such a path.
        ConfigError: the workdir holds a run of another configuration.
        PretrainedError: the weights cannot be used.
        UserError: another run is training there, it holds a run that lost its checkpoints or files
            that a run would overwrite, or the processes of the run have different weights.
    """
    if not evaluates:
        check_path(workdir)
        check_unlocked(workdir)
    untrained = config.eval.checkpoint == "untrained" if evaluates else not has_checkpoint(workdir)
    if not untrained:
        check_same_options(workdir, config)
        return None
    (check_no_other_run if evaluates else check_nothing_lost)(workdir, config)
    if pretrained := read_pretrained(config):
        assert_same_everywhere({"the file of config.model.pretrained": pretrained.sha256})
        say(f"{config.model.pretrained}: {pretrained.report}")
        trained = pretrained.report.normalisation
        if trained and (line := trained.mismatch(config.data.mean, config.data.std)):
            _warn(f"{config.model.pretrained}: {line} (docs/pretrained.md)")
    elif not evaluates:
        _warn_of_random_weights(config.model.backbone)
    for line in () if evaluates else oddities(config):
        _warn(line)
    return pretrained


def train(
    config: Config,
    workdir: Path,
    training: TrainingData,
    evaluation: EvaluationData,
    *,
    pretrained: Pretrained | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> TrainState:
    """Train to the end, from the newest checkpoint in ``workdir`` if there is one.

    The order within an iteration is fixed: evaluate the state, save it, take the batch of this
    step, step, log. A checkpoint therefore holds everything, and the batch depends on the step
    alone: a run that was killed and resumed repeats the uninterrupted one. SIGTERM or Ctrl-C ends
    training with a save.

    Args:
        config: the configuration.
        workdir: receives everything the run writes.
        training: the training set.
        evaluation: the splits to evaluate on.
        pretrained: the weights that a new run starts from, if they have been read already.
        devices: default: all of them.

    Returns:
        The final state, or the saved one if training was stopped by SIGTERM.

    Raises:
        ConfigError: the workdir holds a run of another configuration or on other data, or the
            batch cannot be split over the devices.
        CheckpointError: the checkpoint cannot be used, or the first one written not be read back.
        DiskFullError: something could not be written; the last checkpoint stays.
        KeyboardInterrupt: training was stopped by Ctrl-C, and saved if this is the only process.
        NonFiniteLossError: a loss became NaN or infinite; the last checkpoint stays.
        PretrainedError: the weights to start from cannot be used.
        UserError: another run is training in the workdir, or it holds a run that lost its
            checkpoints, or files that a run would overwrite; or it was deleted or moved away.
    """
    mesh = make_mesh(devices, model=config.mesh.model)
    config.check_devices(mesh.size)
    experiment = Experiment.create(
        config, num_identities=training.num_identities, num_images=len(training.filenames)
    )
    train_step = make_train_step(experiment, mesh)
    evaluator = Evaluator(experiment, mesh, evaluation, workdir)
    with open_checkpoints(workdir) as checkpoints:
        restored = agreed_step(checkpoints.newest)
        start = restored or 0
        needed = itertools.islice(training.batches(start), experiment.num_steps - start)
        batches = _prefetch(needed, mesh, config.train.accumulation)
        if restored is None:
            begin = _new_run(experiment, mesh, workdir, pretrained)
        else:
            begin = _resumed_run(
                experiment, mesh, workdir, training, evaluation, checkpoints, restored
            )
            if restored == experiment.num_steps:
                say(f"{workdir} is finished; evaluating it again")
                evaluator(begin.state)
                return begin.state
            say(f"resuming from step {start} of {experiment.num_steps} in {workdir}")
        state = begin.state
        evaluator.dry_run(state)  # what cannot be evaluated must fail now, not hours later
        if is_primary():
            write_run(workdir, config, training.facts() | _facts(evaluation, begin))
            if restored is None or not (workdir / TRAINING_IMAGES).exists():
                write_training_images(workdir, training.image_sha256)
        with (
            StepLog(workdir, restored, begin.pending, experiment, training.filenames) as log,
            Profiler(config.profile, workdir) as profiler,
            StopSignal() as stop,
        ):
            for step in range(start, experiment.num_steps + 1):
                last = step == experiment.num_steps
                stopped = not last and stop.requested(step)
                evaluation_due = last or step % config.train.eval_every == 0
                save_due = evaluation_due or step % config.train.checkpoint_every == 0
                # A restored state has been evaluated and saved already.
                if (save_due or stopped) and step != restored:
                    check_held(workdir)
                    if save_due:
                        log.flush()
                    pending = log.pending_metrics()  # the resumed run writes their line
                    score = log.evaluation(evaluator(state)) if evaluation_due else None
                    if evaluation_due:
                        log.pictures(state, evaluation.pictures)
                    check_held(workdir)  # evaluation may take long
                    checkpoints.save(state, score, pending, config.flat_options())
                    log.restart_clock()
                if last or stopped:
                    break
                checkpoints.check()
                batch, indices = next(batches)
                profiler.before(step + 1)
                state, metrics = train_step(state, batch)
                profiler.after(step + 1, metrics)
                log.add(step + 1, metrics, indices)
            checkpoints.wait()  # a second signal must not break it
            check_held(workdir)
        if stopped:
            say(f"stopped at step {step} and saved; the same command goes on")
            stop.interrupt()
        else:
            say(f"best step {checkpoints.best}, newest step {step}; see {workdir}/results")
    return state


class _Begin(NamedTuple):
    """What the first iteration starts from.

    Attributes:
        state: fresh or restored.
        pending: metrics of the last steps before it, which no line covers yet.
        pretrained_sha256: digest of the weights that the run started from; None: random weights.
    """

    state: TrainState
    pending: Sequence[Mapping[str, float]]
    pretrained_sha256: str | None


def _facts(evaluation: EvaluationData, begin: _Begin) -> dict[str, Any]:
    """What the manifest says about the run, beside the training set."""
    return {
        "best_by": evaluation.selection_protocol,
        **evaluation.selection_digests,
        "pretrained_sha256": begin.pretrained_sha256,
    }


def _new_run(
    experiment: Experiment, mesh: Mesh, workdir: Path, pretrained: Pretrained | None
) -> _Begin:
    check_nothing_lost(workdir, experiment.config)
    _warn_of_lost_checkpoints(workdir)
    pretrained = pretrained or read_pretrained(experiment.config)
    state = experiment.init_state(mesh, pretrained)
    return _Begin(state, [], pretrained.sha256 if pretrained else None)


def _resumed_run(
    experiment: Experiment,
    mesh: Mesh,
    workdir: Path,
    training: TrainingData,
    evaluation: EvaluationData,
    checkpoints: Checkpoints,
    step: int,
) -> _Begin:
    manifest = read_run(workdir, experiment.config, training.description)
    _check_selection(manifest, evaluation, workdir)
    shardings = experiment.state_shardings(mesh)
    state = checkpoints.restore(experiment.abstract_state(), shardings, step)
    check_same_run(workdir, step, experiment.config)
    return _Begin(state, checkpoints.pending_metrics(step), manifest.get("pretrained_sha256"))


def _warn_of_lost_checkpoints(workdir: Path) -> None:
    """Warn of a manifest without checkpoints: the user probably expects the run to be resumed."""
    if (workdir / "manifest.json").exists():
        _warn(f"{workdir} holds a run, but no checkpoint; it starts over")


def _warn_of_random_weights(backbone: str) -> None:
    """The published scores of the field's recipe start from ImageNet weights."""
    if backbone != "resnet8":  # for which there are none
        _warn(
            f"{backbone} starts from random weights; for the field's recipe give "
            "--config.model.pretrained=FILE (docs/pretrained.md)"
        )


def _warn(line: str) -> None:
    """Print a warning, once for all processes."""
    if is_primary():
        print(f"warning: {line}", file=sys.stderr, flush=True)


def _check_selection(
    manifest: Mapping[str, Any], evaluation: EvaluationData, workdir: Path
) -> None:
    """Steps chosen by different test sets cannot be compared."""
    chosen_by = current_dataset_name(manifest["best_by"])
    if chosen_by != evaluation.selection_protocol:
        raise ConfigError(
            f"config.eval.datasets: the best step of {workdir} is chosen by {chosen_by}, "
            f"not {evaluation.selection_protocol}; name that set first, or use another --workdir "
            "(--mode=evaluate scores a finished run on other sets)"
        )
    digests = evaluation.selection_digests.items()  # an older run lacks one or both
    if any(manifest.get(name, digest) != digest for name, digest in digests):
        raise ConfigError(
            f"config.eval.datasets: the images of {chosen_by}, which choose the best step of "
            f"{workdir}, are others than when it started; restore them, or use another --workdir "
            "(--mode=evaluate scores a finished run on other images)"
        )


def _prefetch(
    batches: Iterator[Mapping[str, np.ndarray]], mesh: Mesh, parts: int
) -> Iterator[tuple[dict[str, jax.Array], np.ndarray]]:
    """Batches on the devices, and their indices; the next batch moves there while a step runs."""
    ahead = None
    for batch in batches:
        rows = dict(batch)
        indices = rows.pop("indices")
        previous, ahead = ahead, (shard_batch(rows, mesh, parts), indices)
        if previous is not None:
            yield previous
    if ahead is not None:
        yield ahead
