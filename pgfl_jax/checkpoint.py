"""Saving and restoring the training state with Orbax."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from pgfl_jax.errors import UserError
from pgfl_jax.processes import peer_lost
from pgfl_jax.sharding import state_shardings
from pgfl_jax.train_state import TrainState

SCORE = "score"


class CheckpointError(UserError):
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
            item_handlers={"state": ocp.StandardCheckpointHandler()},
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
            CheckpointError: the checkpoint holds another architecture, or is damaged.
        """
        damaged = (
            f"{self._directory}/{step}: the checkpoint is damaged; delete this folder to go on "
            "from the one before, if there is one"
        )
        try:
            stored = self._manager.item_metadata(step)["state"].tree["params"]
        except Exception as error:
            raise CheckpointError(damaged) from error
        # Compared here, since Orbax would name the first difference in its own terms only.
        if mismatch := _first_mismatch(flatten_dict(stored, sep="/"), abstract.params):
            raise CheckpointError(
                f"{self._directory}/{step}: another architecture ({mismatch}); use the "
                "configuration that it was trained with, or another --workdir"
            )
        target = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            abstract,
            state_shardings(abstract, mesh),
        )
        args = ocp.args.Composite(state=ocp.args.StandardRestore(target))
        try:
            return self._manager.restore(step, args=args)["state"]
        except Exception as error:  # of any kind: it depends on what is missing
            raise CheckpointError(damaged) from error

    def close(self) -> None:
        """Wait for the last save and release the files."""
        self._manager.wait_until_finished()
        self._manager.close()


def _first_mismatch(stored: Mapping[str, Any], params: Any) -> str | None:
    """What differs between stored and expected parameters, None if nothing does."""
    expected = flatten_dict(params, sep="/")
    for name in sorted(expected.keys() | stored.keys()):
        shapes = [
            tuple(tree[name].shape) if name in tree else "none" for tree in (stored, expected)
        ]
        if shapes[0] != shapes[1]:
            return f"{name}: the checkpoint has {shapes[0]}, the configuration {shapes[1]}"
    return None


@contextlib.contextmanager
def open_checkpoints(workdir: Path) -> Iterator[Checkpoints]:
    """Checkpoints that are waited for and closed, also when training stops with an error."""
    checkpoints = Checkpoints(workdir)
    try:
        yield checkpoints
    except BaseException as error:
        if not peer_lost(error):  # else a save in progress would wait for the process that ended
            checkpoints.close()
        raise
    checkpoints.close()
