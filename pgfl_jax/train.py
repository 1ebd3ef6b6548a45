"""The training loop."""

import dataclasses
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from pgfl_jax import checksums
from pgfl_jax.checkpoint import open_checkpoints
from pgfl_jax.config import Config, ConfigError
from pgfl_jax.distributed.collectives import agreed_step, broadcast_from_primary, is_primary
from pgfl_jax.distributed.preemption import StopSignal
from pgfl_jax.distributed.sharding import make_mesh, shard_batch
from pgfl_jax.errors import UserError
from pgfl_jax.experiment import Experiment
from pgfl_jax.report.manifest import read_run, write_run
from pgfl_jax.report.writers import (
    MetricWriter,
    duration,
    embedding_label,
    progress_line,
)
from pgfl_jax.retrieval.evaluate import EvaluationData, Evaluator
from pgfl_jax.train_state import TrainState
from pgfl_jax.train_step import Metrics, make_train_step


class NonFiniteLossError(UserError):
    """A loss became NaN or infinite; the message names the step, the term and the images."""


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingData:
    """What the loop needs to know of a training set.

    Attributes:
        num_identities: number of classes.
        filenames: (N,) names, to which the ``indices`` of a batch point.
        batches: starts the endless stream of batches at a step: ``images``, ``labels``,
            ``part_maps``, ``visibility`` and ``indices``, this process's rows of each.
        description: for the manifest: fingerprints of images, identities and poses, which a
            resumed run must find again.
        origin: for the manifest: where images and poses come from, which may change.
    """

    num_identities: int
    filenames: np.ndarray
    batches: Callable[[int], Iterator[Mapping[str, np.ndarray]]]
    description: Mapping[str, Any]
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """What the manifest says of the training set."""
        return {
            "num_identities": self.num_identities,
            "num_images": len(self.filenames),
            "data": dict(self.description),
            "origin": dict(self.origin),
        }


def train(
    config: Config,
    workdir: Path,
    training: TrainingData,
    evaluation: EvaluationData,
    *,
    devices: Sequence[jax.Device] | None = None,
) -> TrainState:
    """Train to the end, from the newest checkpoint in ``workdir`` if there is one.

    The order within a turn is fixed: evaluate the state, save it, take the batch of this step,
    step, log. So a checkpoint holds all there is to know, and the batch depends on the step alone:
    a killed and resumed run repeats the undisturbed one. A SIGTERM or a Ctrl-C ends the turn with
    a save.

    Args:
        config: the configuration.
        workdir: receives everything the run writes.
        training: the training set.
        evaluation: the splits to evaluate on.
        devices: default: all of them.

    Returns:
        The final state, or the saved one if training was stopped by SIGTERM.

    Raises:
        ConfigError: the workdir holds a run of another configuration or on other data, or the
            batch cannot be split over the devices.
        CheckpointError: the checkpoint cannot be used.
        DiskFullError: something could not be written; the last checkpoint stays.
        KeyboardInterrupt: training was stopped by Ctrl-C, and saved if this is the only process.
        NonFiniteLossError: a loss became NaN or infinite; the last checkpoint stays.
        PretrainedError: the weights to start from cannot be used.
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
        facts = training.facts() | {"best_by": evaluation.selection_protocol}
        if restored is None:
            pretrained = config.model.pretrained
            facts["pretrained_sha256"] = checksums.sha256(Path(pretrained)) if pretrained else None
            _warn_of_lost_checkpoints(workdir)
            state, unlogged = experiment.init_state(mesh), []
        else:
            manifest = read_run(workdir, config, training.description)
            _check_deciding(manifest, evaluation, workdir)
            facts["pretrained_sha256"] = manifest.get("pretrained_sha256")
            state = checkpoints.restore(experiment.abstract_state(), mesh, start)
            unlogged = checkpoints.pending_metrics(start)
            if start == experiment.num_steps:
                _say(f"{workdir} is finished; evaluating it again")
                evaluator(state)
                return state
            _say(f"resuming from step {start} of {experiment.num_steps} in {workdir}")
        evaluator.dry_run(state)  # nothing should be found out hours later
        if is_primary():
            write_run(workdir, config, facts)
        with (
            _Log(workdir, restored, unlogged, experiment, training.filenames) as log,
            _Trace(config, workdir) as trace,
            StopSignal() as stop,
        ):
            for step in range(start, experiment.num_steps + 1):
                last = step == experiment.num_steps
                stopped = not last and stop.requested(step)
                evaluation_due = step % config.train.eval_every == 0 or last
                save_due = step % config.train.checkpoint_every == 0 or evaluation_due
                # What was restored has been evaluated and saved already.
                if (save_due or stopped) and step != restored:
                    if save_due:
                        log.flush()
                    unlogged = log.unlogged()  # steps of which a resumed run writes the line
                    score = log.evaluation(evaluator(state)) if evaluation_due else None
                    checkpoints.save(state, score, unlogged)
                    log.restart_clock()
                if last or stopped:
                    break
                checkpoints.check()
                batch, indices = next(batches)
                trace.before(step + 1)
                state, metrics = train_step(state, batch)
                trace.after(step + 1, metrics)
                log.add(step + 1, metrics, indices)
            checkpoints.wait()  # a second signal must not break it
        if stopped:
            _say(f"stopped at step {step} and saved; the same command goes on")
            stop.interrupt()
        else:
            _say(f"best step {checkpoints.best}, newest step {step}; see {workdir}/results")
    return state


def _prefetch(
    batches: Iterator[Mapping[str, np.ndarray]], mesh: Mesh, parts: int
) -> Iterator[tuple[dict[str, jax.Array], np.ndarray]]:
    """Batches on the devices, and their indices: the next one moves there while a step runs."""
    ahead = None
    for batch in batches:
        rows = dict(batch)
        indices = rows.pop("indices")
        previous, ahead = ahead, (shard_batch(rows, mesh, parts), indices)
        if previous is not None:
            yield previous
    if ahead is not None:
        yield ahead


class _Trace:
    """A profile of the steps that ``config.profile`` names, in ``WORKDIR/profile``."""

    def __init__(self, config: Config, workdir: Path) -> None:
        self._first, self._last = config.profile or (0, 0)
        self._folder = workdir / "profile"
        if jax.process_count() > 1:
            # JAX names the files by machine, and there may be several processes on it.
            self._folder /= f"process_{jax.process_index()}"
        self._running = False

    def __enter__(self) -> "_Trace":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop()

    def before(self, step: int) -> None:
        """Start before the first step to be traced, or with what a resumed run has left of them."""
        if self._first <= step <= self._last and not self._running:
            jax.profiler.start_trace(self._folder)
            self._running = True

    def after(self, step: int, metrics: Metrics) -> None:
        """Stop when the last one has been computed."""
        if step == self._last and self._running:
            jax.block_until_ready(metrics)
            self._stop()

    def _stop(self) -> None:
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            _say(f"profile in {self._folder}")


def _say(line: str) -> None:
    """Print a line, once for all processes."""
    if is_primary():
        print(line, flush=True)


def _warn_of_lost_checkpoints(workdir: Path) -> None:
    """A folder with a run but without a checkpoint is not what its user takes it for."""
    if is_primary() and (workdir / "manifest.json").exists():
        print(
            f"warning: {workdir} holds a run, but no checkpoint; it begins anew",
            file=sys.stderr,
            flush=True,
        )


def _check_deciding(manifest: Mapping[str, Any], evaluation: EvaluationData, workdir: Path) -> None:
    """Steps chosen by different test sets cannot be compared."""
    if manifest["best_by"] != evaluation.selection_protocol:
        raise ConfigError(
            f"config.eval.datasets: the best step of {workdir} is chosen by {manifest['best_by']}, "
            f"not {evaluation.selection_protocol}; name that set first, or use another --workdir "
            "(--mode=evaluate scores a finished run on other sets)"
        )


class _Log:
    """The numbers of the steps since the last progress line.

    They stay on the device, so that no step waits for the one before, and are fetched at once.
    """

    def __init__(
        self,
        workdir: Path,
        restored: int | None,
        unlogged: Sequence[Mapping[str, float]],
        experiment: Experiment,
        filenames: np.ndarray,
    ) -> None:
        self._writer = MetricWriter(workdir, restored) if is_primary() else None
        self._experiment = experiment
        self._filenames = filenames
        # The steps before the restored one; their images have been found to be sound.
        self._pending: list[tuple[int, Mapping[str, Any], np.ndarray]] = [
            (step, {name: np.float32(value) for name, value in terms.items()}, np.arange(0))
            for step, terms in enumerate(unlogged, (restored or 0) - len(unlogged) + 1)
        ]
        self._compiled = False
        self.restart_clock()

    def __enter__(self) -> "_Log":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._writer:
            self._writer.close()

    def restart_clock(self) -> None:
        """Do not count what happened since the last step as training time."""
        self._started, self._timed_steps = time.perf_counter(), 0

    def add(self, step: int, metrics: Metrics, indices: np.ndarray) -> None:
        """Take the metrics of the step that made ``step`` steps; print every ``log_every``."""
        self._pending.append((step, metrics, indices))
        if not self._compiled:
            jax.block_until_ready(metrics)
            self._compiled = True
            self.restart_clock()
        else:
            self._timed_steps += 1
        if step % self._experiment.config.train.log_every == 0:
            self.flush()

    def unlogged(self) -> list[dict[str, float]]:
        """The terms of the steps of which no line has been written yet.

        Raises:
            NonFiniteLossError: a term of one of the steps is NaN or infinite.
        """
        values = self._fetch()
        return [{name: float(value) for name, value in terms.items()} for terms in values]

    def _fetch(self) -> Sequence[Mapping[str, np.ndarray]]:
        values = jax.device_get([metrics for _, metrics, _ in self._pending])
        for (step, _, indices), terms in zip(self._pending, values, strict=True):
            _check_finite(step, terms, indices, self._filenames)
        return values

    def flush(self) -> None:
        """Fetch, check, print and write what is pending.

        Raises:
            NonFiniteLossError: a term of one of the steps is NaN or infinite.
        """
        if not self._pending:
            return
        values = self._fetch()
        seconds = time.perf_counter() - self._started
        step = self._pending[-1][0]
        self._pending = []
        means = {name: float(np.mean([value[name] for value in values])) for name in values[0]}
        rates = {"learning_rate": float(self._experiment.schedule(step - 1))}
        if self._timed_steps:
            steps_per_second = self._timed_steps / seconds
            rates["images_per_second"] = self._experiment.config.data.batch_size * steps_per_second
            seconds_left = (self._experiment.num_steps - step) / steps_per_second
            pace = f"{rates['images_per_second']:.0f} images/s | ETA {duration(seconds_left)}"
        else:
            pace = "compiled"  # the only step since the last line was the one that compiles
        _say(progress_line(step, self._experiment.num_steps, means, pace))
        if self._writer:
            self._writer.write(step, means | rates)
        self.restart_clock()

    def evaluation(self, results: list[dict[str, Any]]) -> float:
        """Write the scores of an evaluation; returns the one that decides the best step."""
        values = {}
        for result in results:
            prefix = f"{result['protocol']}/{embedding_label(result)}"
            values[f"{prefix}/mAP"] = result["mAP"]
            values[f"{prefix}/rank1"] = result["cmc"]["1"]
        if self._writer:
            self._writer.write(results[0]["step"], values)
        # Every process has ranked for itself; one score must choose the best step.
        return broadcast_from_primary(results[0]["mAP"])


def _check_finite(
    step: int, terms: Mapping[str, np.ndarray], indices: np.ndarray, filenames: np.ndarray
) -> None:
    if broken := [name for name, value in terms.items() if not np.isfinite(value)]:
        files = ", ".join(sorted({str(filenames[i]) for i in indices}))
        raise NonFiniteLossError(
            f"step {step}: {', '.join(broken)} not finite; the last checkpoint is intact. "
            "Lower config.optim.learning_rate in a new --workdir, or look at the images of the "
            f"batch: {files}"
        )
