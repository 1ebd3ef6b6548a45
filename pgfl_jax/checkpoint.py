"""Saving and restoring the training state with Orbax."""

import contextlib
import itertools
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from pgfl_jax.checksums import find_damage, write_checksums
from pgfl_jax.distributed.launch import (
    all_processes,
    barrier,
    broadcast_from_primary,
    is_primary,
    peer_lost,
)
from pgfl_jax.errors import DiskFullError, UserError, full_disk
from pgfl_jax.train_state import TrainState

SCORE = "score"
SET_ASIDE = "damaged_checkpoints"
_DELETED = "deleted"


class CheckpointError(UserError):
    """A checkpoint that cannot be used; the message says why and what to do."""


class _SealedPath(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """Notes the digests of a checkpoint's files before it gets its final name."""

    async def finalize(self) -> None:
        if self.get_final().name.isdecimal():  # the whole, not one of its items
            # Orbax has notes of its own still to write at the top; none is needed to restore.
            write_checksums(Path(self.get()))
        await super().finalize()


class _Manager(ocp.CheckpointManager):
    """Leaves SIGTERM to :mod:`pgfl_jax.distributed.preemption`."""

    def reached_preemption(self, step: int) -> bool:
        return False


class Checkpoints:
    """The checkpoints of one run: the newest two and the best are kept.

    A checkpoint appears under its final name only when it is whole and loses that name before it
    is deleted, so a killed process leaves no half of one. Its files are compared with the digests
    noted when it was saved; one that is damaged is never restored.
    """

    def __init__(self, workdir: Path, *, read_only: bool = False) -> None:
        """Open ``workdir/checkpoints``, making it if it is not there.

        Damaged checkpoints are moved to ``workdir/damaged_checkpoints``, so that training goes on
        from the one before.

        Args:
            workdir: the run's folder.
            read_only: change nothing; a training may be running.

        Raises:
            CheckpointError: every checkpoint is damaged.
        """
        self._directory = (workdir / "checkpoints").absolute()
        self._read_only = read_only
        self._saving = False
        self._damaged: dict[int, str] = {}
        if read_only:
            self._damaged = _examine(self._directory)
        else:
            _set_damaged_aside(self._directory)
            self._delete()
            barrier("checkpoints examined")
        policy = AnyPreservationPolicy(
            [
                LatestN(2),
                BestN(
                    get_metric_fn=lambda metrics: metrics[SCORE],
                    n=1,
                    keep_checkpoints_without_metrics=False,
                ),
            ]
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy,
            best_fn=lambda metrics: metrics[SCORE],
            temporary_path_class=_SealedPath,
            read_only=read_only,
            create=not read_only,
            cleanup_tmp_directories=not read_only,
            todelete_subdir=None if read_only else _DELETED,
        )
        try:
            self._manager = _Manager(
                self._directory,
                item_handlers={
                    "state": ocp.StandardCheckpointHandler(),
                    "unlogged": ocp.JsonCheckpointHandler(),
                },
                options=options,
            )
        except ValueError as error:
            if not self._damaged:
                raise
            # A score that is no JSON, most likely.
            raise CheckpointError(self._explain("cannot be opened")) from error

    @property
    def newest(self) -> int | None:
        """Step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    @property
    def best(self) -> int | None:
        """Step of the checkpoint with the highest score, or None.

        Raises:
            CheckpointError: a damaged one may have been the best.
        """
        if self._damaged:
            raise CheckpointError(self._explain("which step is the best cannot be told"))
        return self._manager.best_step()

    def save(
        self,
        state: TrainState,
        score: float | None,
        unlogged: Sequence[Mapping[str, float]] = (),
    ) -> None:
        """Save in the background under the state's step.

        Args:
            state: what to save.
            score: the evaluation's score at this step; None where there was no evaluation.
            unlogged: terms of the last steps, which a resumed run has still to log.
        """
        self.wait()
        self._saving = True
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), unlogged=ocp.args.JsonSave(list(unlogged))
            ),
            metrics=None if score is None else {SCORE: float(score)},
        )

    def restore(self, abstract: TrainState, shardings: TrainState, step: int) -> TrainState:
        """Read the state of ``step``.

        Args:
            abstract: shapes and dtypes of the expected state.
            shardings: where the restored arrays go, whatever mesh they were saved from.
            step: a step that is there.

        Raises:
            CheckpointError: the checkpoint holds another architecture, or is damaged.
        """
        folder = self._directory / str(step)
        if step in self._damaged:
            raise CheckpointError(self._explain(f"step {step} cannot be restored"))
        try:
            stored = self._manager.item_metadata(step)["state"].tree["params"]
        except Exception as error:
            raise _unreadable(folder, error) from error
        # Compared here, since Orbax would name the first difference in its own terms only.
        if mismatch := _first_mismatch(flatten_dict(stored, sep="/"), abstract.params):
            raise CheckpointError(
                f"{folder}: another architecture ({mismatch}); use the "
                "configuration that it was trained with, or another --workdir"
            )
        target = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            abstract,
            shardings,
        )
        args = ocp.args.Composite(state=ocp.args.StandardRestore(target))
        try:
            return self._manager.restore(step, args=args)["state"]
        except Exception as error:
            raise _unreadable(folder, error) from error

    def unlogged(self, step: int) -> list[dict[str, float]]:
        """What was given to :meth:`save`, of a step that has been restored."""
        args = ocp.args.Composite(unlogged=ocp.args.JsonRestore())
        return self._manager.restore(step, args=args)["unlogged"]

    def check(self) -> None:
        """Raise the error of a save that has failed in the background."""
        if self._saving and not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Wait until the last save is on disk."""
        self._saving = False
        self._manager.wait_until_finished()
        self._delete()

    def close(self) -> None:
        """Wait for the last save and release the files."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def _delete(self) -> None:
        """Delete what Orbax has moved out of the way: a deletion may be interrupted."""
        if is_primary() and not self._read_only:
            shutil.rmtree(self._directory / _DELETED, ignore_errors=True)

    def _explain(self, consequence: str) -> str:
        return (
            f"{self._directory}: {consequence}: {_list(self._damaged)}; training goes on from the "
            "checkpoint before and moves the damaged one aside"
        )


def has_checkpoint(workdir: Path) -> bool:
    """Whether ``workdir`` holds a checkpoint to go on from, as process 0 sees it."""
    return bool(broadcast_from_primary(float(bool(_steps(workdir / "checkpoints")))))


def _unreadable(folder: Path, error: Exception) -> CheckpointError:
    """The error of a checkpoint that is as it was saved, and all the same cannot be restored."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return CheckpointError(
        f"{folder}: the checkpoint is as it was saved, but cannot be read ({reason}); use the "
        "version of the program that wrote it, or another --workdir"
    )


def _steps(directory: Path) -> list[int]:
    """The steps of the checkpoints that are there, in their order."""
    paths = directory.iterdir() if directory.is_dir() else ()
    return sorted(int(path.name) for path in paths if path.name.isdecimal())


def _examine(directory: Path) -> dict[int, str]:
    """The steps of damaged checkpoints, with what is wrong about each."""
    found = {step: find_damage(directory / str(step)) for step in _steps(directory)}
    # A training that is running may have deleted one meanwhile.
    return {step: wrong for step, wrong in found.items() if wrong and step in _steps(directory)}


def _list(damaged: Mapping[int, str]) -> str:
    return ", ".join(f"{step} is damaged ({wrong})" for step, wrong in damaged.items())


def _free(path: Path) -> Path:
    """``path``, or with .2, .3 … at its end if there is something already."""
    names = (path.with_name(f"{path.name}.{number}") for number in itertools.count(2))
    return next(name for name in itertools.chain([path], names) if not name.exists())


def _set_damaged_aside(directory: Path) -> None:
    """Move damaged checkpoints out of the way, as long as a sound one is left."""
    damaged = _examine(directory) if is_primary() else {}
    if not all_processes(not damaged or len(damaged) < len(_steps(directory))):
        raise CheckpointError(
            f"{directory}: no checkpoint is sound: {_list(damaged) or 'see process 0'}; put a "
            "copy back, or begin anew in another --workdir"
        )
    for step, wrong in damaged.items():
        target = _free(directory.with_name(SET_ASIDE) / str(step))
        target.parent.mkdir(exist_ok=True)
        (directory / str(step)).rename(target)
        print(
            f"warning: checkpoint {step} is damaged ({wrong}); moved to {target}",
            file=sys.stderr,
            flush=True,
        )


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
def open_checkpoints(workdir: Path, *, read_only: bool = False) -> Iterator[Checkpoints]:
    """Checkpoints that are waited for and closed, also when training stops with an error.

    Args:
        workdir: the run's folder.
        read_only: change nothing; a training may be running.

    Raises:
        CheckpointError: every checkpoint is damaged.
        DiskFullError: something written meanwhile, in the background too, found no room.
    """
    shown = sys.unraisablehook
    sys.unraisablehook = _quiet(shown)
    try:
        checkpoints = Checkpoints(workdir, read_only=read_only)
        try:
            yield checkpoints
        except BaseException as error:
            if not peer_lost(
                error
            ):  # else a save in progress would wait for the process that ended
                checkpoints.close()
            raise
        checkpoints.close()
        sys.unraisablehook = shown
    except Exception as error:
        reason = full_disk(error)
        if reason is None:
            raise
        # Orbax began with more files than it then awaited, and lets them go when Python ends.
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        steps = _steps(workdir / "checkpoints")
        kept = f"the checkpoint of step {steps[-1]} is intact" if steps else "nothing was saved yet"
        raise DiskFullError(
            f"{workdir}: {reason}; {kept}; free space, then the same command goes on"
        ) from error


def _quiet(shown: Callable[[Any], Any]) -> Callable[[Any], None]:
    """What shows errors that nobody can catch, but for arrays that fail after the first one has.

    The first is raised. The others find that the event loop they report to has ended with it, until
    the process ends.
    """

    def show(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            shown(unraisable)

    return show
