"""A profile of some training steps."""

from pathlib import Path

import jax

from pgfl_jax.report.writers import say
from pgfl_jax.train_step import Metrics


class Profiler:
    """Profiles the steps that ``config.profile`` names, into ``WORKDIR/profile``."""

    def __init__(self, steps: tuple[int, ...], workdir: Path) -> None:
        """Prepare to trace.

        Args:
            steps: the first and the last step, counted from 1; empty: no step.
            workdir: the run's folder.
        """
        self._first, self._last = steps or (0, 0)
        self._folder = workdir / "profile"
        if jax.process_count() > 1:
            # JAX names the files by machine, which may run several of the processes.
            self._folder /= f"process_{jax.process_index()}"
        self._running = False

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop()

    def before(self, step: int) -> None:
        """Start before the first step to be traced, or the first that a resumed run takes."""
        if self._first <= step <= self._last and not self._running:
            jax.profiler.start_trace(self._folder)
            self._running = True

    def after(self, step: int, metrics: Metrics) -> None:
        """Stop when the last step has been computed."""
        if step == self._last and self._running:
            jax.block_until_ready(metrics)
            self._stop()

    def _stop(self) -> None:
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            say(f"profile in {self._folder}")
