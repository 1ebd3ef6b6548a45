"""The numbers of the training steps, from the device to terminal, file and TensorBoard."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pgfl_jax.distributed.collectives import broadcast_from_primary, is_primary
from pgfl_jax.errors import UserError
from pgfl_jax.experiment import Experiment
from pgfl_jax.report.picture_grid import picture_grid
from pgfl_jax.report.writers import MetricWriter, duration, embedding_label, progress_line, say
from pgfl_jax.retrieval.protocols import Batch
from pgfl_jax.train_state import TrainState
from pgfl_jax.train_step import Metrics


class NonFiniteLossError(UserError):
    """A loss became NaN or infinite; the message names the step, the term and the images."""


class StepLog:
    """The metrics of the steps since the last progress line.

    They stay on the device, so that no step waits for the one before, and are fetched together.
    """

    def __init__(
        self,
        workdir: Path,
        restored: int | None,
        pending: Sequence[Mapping[str, float]],
        experiment: Experiment,
        filenames: np.ndarray,
    ) -> None:
        """Open the files.

        Args:
            workdir: the run's folder.
            restored: step of the checkpoint that the run continues from; None: a new run.
            pending: what :meth:`pending_metrics` returned before that checkpoint.
            experiment: the options, the schedule and the number of steps.
            filenames: (N,) names of the training images.
        """
        self._writer = MetricWriter(workdir, restored) if is_primary() else None
        self._experiment = experiment
        self._filenames = filenames
        # Their terms were finite, so their images will not be named.
        self._pending: list[tuple[int, Mapping[str, Any], np.ndarray]] = [
            (step, {name: np.float32(value) for name, value in terms.items()}, np.arange(0))
            for step, terms in enumerate(pending, (restored or 0) - len(pending) + 1)
        ]
        self._compiled = False
        self.restart_clock()

    def __enter__(self) -> "StepLog":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._writer:
            self._writer.close()

    def restart_clock(self) -> None:
        """Exclude whatever happened since the last step from the training time."""
        self._started, self._timed_steps = time.perf_counter(), 0

    def add(self, step: int, metrics: Metrics, indices: np.ndarray) -> None:
        """Take the metrics of the step that brought the count to ``step``.

        Every ``train.log_every`` steps this prints a line.
        """
        self._pending.append((step, metrics, indices))
        if not self._compiled:
            jax.block_until_ready(metrics)
            self._compiled = True
            self.restart_clock()
        else:
            self._timed_steps += 1
        if step % self._experiment.config.train.log_every == 0:
            self.flush()

    def pending_metrics(self) -> list[dict[str, float]]:
        """The terms of the steps that no line has covered yet.

        Raises:
            NonFiniteLossError: a term of one of the steps is NaN or infinite.
        """
        values = self._fetch()
        return [{name: float(value) for name, value in terms.items()} for terms in values]

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
        say(progress_line(step, self._experiment.num_steps, means, pace))
        if self._writer:
            self._writer.write(step, means | rates)
        self.restart_clock()

    def evaluation(self, results: Sequence[Mapping[str, Any]]) -> float:
        """Write the scores of an evaluation; returns the score that selects the best step."""
        values = {}
        for result in results:
            prefix = f"{result['protocol']}/{embedding_label(result)}"
            values[f"{prefix}/mAP"] = result["mAP"]
            values[f"{prefix}/rank1"] = result["cmc"]["1"]
        if self._writer:
            self._writer.write(results[0]["step"], values)
        # Every process has ranked for itself; one score must select the best step.
        return broadcast_from_primary(results[0]["mAP"])

    def pictures(self, state: TrainState, pictures: Callable[[], Batch] | None) -> None:
        """Write what the main branch makes of a few query images to TensorBoard's events."""
        if self._writer and pictures is not None:
            grid = picture_grid(self._experiment, state, pictures())
            self._writer.write_picture(int(state.step), "queries", grid)

    def _fetch(self) -> Sequence[Mapping[str, np.ndarray]]:
        values = jax.device_get([metrics for _, metrics, _ in self._pending])
        for (step, _, indices), terms in zip(self._pending, values, strict=True):
            _check_finite(step, terms, indices, self._filenames)
        return values


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
