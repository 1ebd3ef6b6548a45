"""Saving and restoring the training state with Orbax."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from pgfl_jax.sharding import replicated
from pgfl_jax.train_state import TrainState

SCORE = "score"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message says why and what to do."""


class Checkpoints:
    """The checkpoints of one run: the newest and the best are kept.

    A checkpoint appears under its final name only when it is whole, so a killed process leaves the
    one before it intact.
    """

    def __init__(self, workdir: Path) -> None:
        """Open ``workdir/checkpoints``, making it if it is not there."""
        policy = AnyPreservationPolicy(
            [
                LatestN(1),
                BestN(
                    get_metric_fn=lambda metrics: metrics[SCORE],
                    n=1,
                    keep_checkpoints_without_metrics=False,
                ),
            ]
        )
        self._directory = (workdir / "checkpoints").absolute()
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy, best_fn=lambda metrics: metrics[SCORE]
            ),
        )

    @property
    def newest(self) -> int | None:
        """Step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    @property
    def best(self) -> int | None:
        """Step of the checkpoint with the highest score, or None."""
        return self._manager.best_step()

    def save(self, state: TrainState, score: float | None) -> None:
        """Save in the background under the state's step.

        Args:
            state: what to save.
            score: the evaluation's score at this step; None where there was no evaluation.
        """
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(state=ocp.args.StandardSave(state)),
            metrics=None if score is None else {SCORE: float(score)},
        )

    def restore(self, abstract: TrainState, mesh: Mesh, step: int) -> TrainState:
        """Read the state of ``step``.

        Args:
            abstract: shapes and dtypes of the expected state.
            mesh: where the restored arrays go, whatever mesh they were saved from.
            step: a step that is there.

        Raises:
            CheckpointError: the checkpoint holds another architecture or cannot be read.
        """
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), abstract
        )
        try:
            args = ocp.args.Composite(state=ocp.args.StandardRestore(target))
            return self._manager.restore(step, args=args)["state"]
        except (ValueError, KeyError, OSError) as error:
            reason = str(error).split("\n")[0]
            raise CheckpointError(
                f"{self._directory}/{step}: does not fit this configuration ({reason}); use the "
                "configuration it was trained with, or another --workdir"
            ) from error

    def close(self) -> None:
        """Wait for the last save and release the files."""
        self._manager.wait_until_finished()
        self._manager.close()


@contextlib.contextmanager
def open_checkpoints(workdir: Path) -> Iterator[Checkpoints]:
    """Checkpoints that are waited for and closed, also when training stops with an error."""
    checkpoints = Checkpoints(workdir)
    try:
        yield checkpoints
    finally:
        checkpoints.close()
