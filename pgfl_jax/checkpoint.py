"""Saving and restoring the training state with Orbax."""

import contextlib
import itertools
import json
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from pgfl_jax import checksums
from pgfl_jax.distributed.collectives import (
    all_processes,
    barrier,
    broadcast_from_primary,
    is_primary,
)
from pgfl_jax.errors import DiskFullError, UserError, full_disk
from pgfl_jax.run_lock import locked
from pgfl_jax.train_state import TrainState

SCORE = "score"
SET_ASIDE = "damaged_checkpoints"
_DELETED = "deleted"
# Stored in every checkpoint under this name, which older runs already have on disk.
_PENDING_METRICS = "unlogged"
_OPTIONS = "options"


class CheckpointError(UserError):
    """A checkpoint that cannot be used; the message says why and what to do."""


class _ChecksummedPath(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """Writes the checksums of a checkpoint's files before it gets its final name."""

    async def finalize(self) -> None:
        if self.get_final().name.isdecimal():  # the whole checkpoint, not one of its items
            # Orbax writes notes to the top folder later; restoring needs none of them.
            checksums.write(Path(self.get()))
        await super().finalize()


class _Manager(ocp.CheckpointManager):
    """Leaves SIGTERM to :mod:`pgfl_jax.distributed.preemption`."""

    def reached_preemption(self, step: int) -> bool:
        return False


class Checkpoints:
    """The checkpoints of one run: the newest two and the best are kept.

    A checkpoint gets its final name when it is complete and loses that name before it is deleted,
    so a killed process leaves no partial one under it. Its files are compared with the checksums
    written when it was saved; a damaged checkpoint is never restored.
    """

    def __init__(self, workdir: Path, *, read_only: bool = False) -> None:
        """Open ``workdir/checkpoints``, and make it if needed.

        Damaged checkpoints are moved to ``workdir/damaged_checkpoints``; training then resumes from
        the one before.

        Args:
            workdir: the run's folder.
            read_only: change nothing; another process may be training there.

        Raises:
            CheckpointError: every checkpoint is damaged.
        """
        self._directory = (workdir / "checkpoints").absolute()
        self._read_only = read_only
        self._saving = False
        self._first: int | None = None  # step of the first save, to be read back
        self._saved = False
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
            temporary_path_class=_ChecksummedPath,
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
                    _PENDING_METRICS: ocp.JsonCheckpointHandler(),
                    _OPTIONS: ocp.JsonCheckpointHandler(),
                },
                options=options,
            )
        except ValueError as error:
            if not self._damaged:
                raise
            # Most likely a score that is not JSON.
            raise CheckpointError(self._explain("cannot be opened")) from error

    @property
    def newest(self) -> int | None:
        """Step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    @property
    def best(self) -> int | None:
        """Step of the checkpoint with the highest score, or None.

        Raises:
            CheckpointError: a damaged checkpoint may have been the best.
        """
        if self._damaged:
            raise CheckpointError(self._explain("the best step cannot be determined"))
        return self._manager.best_step()

    def save(
        self,
        state: TrainState,
        score: float | None,
        pending_metrics: Sequence[Mapping[str, float]] = (),
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Save in the background under the state's step.

        Args:
            state: what to save.
            score: the evaluation's score at this step; None if there was no evaluation.
            pending_metrics: metrics of the last steps, which a resumed run still has to log.
            options: of the run, by their dotted names, for :func:`stored_options`.
        """
        self.wait()
        self._saving = True
        step = int(state.step)
        if not self._saved:
            self._first, self._saved = step, True
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                **{_PENDING_METRICS: ocp.args.JsonSave(list(pending_metrics))},
                **({} if options is None else {_OPTIONS: ocp.args.JsonSave(dict(options))}),
            ),
            metrics=None if score is None else {SCORE: float(score)},
        )

    def restore(self, abstract: TrainState, shardings: TrainState, step: int) -> TrainState:
        """Read the state of ``step``.

        Args:
            abstract: shapes and dtypes of the expected state.
            shardings: where the restored arrays go, whatever mesh they were saved from.
            step: the step of an existing checkpoint.

        Raises:
            CheckpointError: the checkpoint holds another architecture or a value that is not
                finite, or is damaged.
        """
        folder = self._directory / str(step)
        if step in self._damaged:
            raise CheckpointError(self._explain(f"step {step} cannot be restored"))
        try:
            stored = self._manager.item_metadata(step)["state"].tree["params"]
        except Exception as error:
            raise _unreadable(folder, error) from error
        # Compared here because Orbax would describe a difference in its own terms.
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
            state = self._manager.restore(step, args=args)["state"]
        except Exception as error:
            raise _unreadable(folder, error) from error
        _check_step(folder, state.step)
        _check_finite(folder, state)
        return state

    def pending_metrics(self, step: int) -> list[dict[str, float]]:
        """The ``pending_metrics`` that were saved with a step."""
        args = ocp.args.Composite(**{_PENDING_METRICS: ocp.args.JsonRestore()})
        return self._manager.restore(step, args=args)[_PENDING_METRICS]

    def check(self) -> None:
        """Raise the error of a save that has failed in the background."""
        if self._saving and not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Wait until the last save is on disk.

        Raises:
            CheckpointError: the first save cannot be read back.
        """
        self._saving = False
        self._manager.wait_until_finished()
        self._delete()
        first, self._first = self._first, None
        if first is not None and is_primary():
            _read_back(self._directory / str(first), first)

    def close(self) -> None:
        """Wait for the last save and release the files."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def _delete(self) -> None:
        """Delete the checkpoints that Orbax has moved out of the way, now or before a kill."""
        if is_primary() and not self._read_only:
            shutil.rmtree(self._directory / _DELETED, ignore_errors=True)

    def _explain(self, consequence: str) -> str:
        return (
            f"{self._directory}: {consequence}: {_list(self._damaged)}; training goes on from the "
            "checkpoint before and moves the damaged one aside"
        )


def check_path(workdir: Path) -> None:
    """Refuse a path that Orbax takes for a pattern; what it writes there could not be read again.

    Raises:
        CheckpointError: names the path and the character.
    """
    if found := sorted(set("*?[]\\") & set(str(workdir.absolute()))):
        raise CheckpointError(
            f"--workdir={workdir.absolute()}: checkpoints cannot be written below a folder with "
            f"{' or '.join(found)} in its name; use another --workdir"
        )


def _read_back(folder: Path, step: int) -> None:
    """Read the smallest array of a checkpoint, which fails if its files do not fit together."""
    args = ocp.args.PyTreeRestore(
        {"step": 0}, restore_args={"step": ocp.RestoreArgs(np.ndarray)}, partial_restore=True
    )
    try:
        found = int(ocp.PyTreeCheckpointHandler().restore(folder / "state", args=args)["step"])
    except Exception as error:
        raise CheckpointError(
            f"{folder}: was just written, but cannot be read back ({_first_line(error)}); try a "
            "--workdir on another disk"
        ) from error
    if found != step:
        raise CheckpointError(f"{folder}: was just written for step {step}, but holds {found}")


def _check_step(folder: Path, step: Any) -> None:
    """CheckpointError for a folder whose name is not the step that it holds."""
    if int(step) != int(folder.name):
        raise CheckpointError(f"{folder}: holds step {int(step)}; give the folder its name back")


def _check_finite(folder: Path, tree: Any) -> None:
    """CheckpointError for an array of a checkpoint with NaN or infinite values; names it."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        # Each process looks at its own part, and at one copy of what is replicated.
        shards = leaf.addressable_shards if isinstance(leaf, jax.Array) else ()
        parts = [shard.data for shard in shards if shard.replica_id == 0] if shards else [leaf]
        if not all(np.isfinite(np.asarray(part)).all() for part in parts):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise CheckpointError(
                f"{folder}: {name} has values that are not finite; take another checkpoint (to "
                "resume from the one before, move this folder away)"
            )


def has_checkpoint(workdir: Path) -> bool:
    """Whether ``workdir`` holds a checkpoint to resume from, as process 0 sees it."""
    return bool(broadcast_from_primary(float(bool(checkpoint_steps(workdir)))))


def _unreadable(folder: Path, error: Exception) -> CheckpointError:
    """The error for a checkpoint whose files are intact but which cannot be restored."""
    return CheckpointError(
        f"{folder}: the checkpoint is as it was saved, but cannot be read ({_first_line(error)}); "
        "use the version of the program that wrote it, or another --workdir"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _steps(directory: Path) -> list[int]:
    """The steps that have a checkpoint, in ascending order.

    Raises:
        CheckpointError: the folder is a link that leads nowhere, or a file; or it holds something
            that has nearly the name of a checkpoint.
    """
    if not directory.is_dir() and (directory.is_symlink() or directory.exists()):
        link = (
            f"a link to {directory.readlink()}, which is missing" if directory.is_symlink() else ""
        )
        raise CheckpointError(
            f"{directory}: {link or 'a file, not a folder'}; bring the folder back, or use another "
            "--workdir"
        )
    paths = directory.iterdir() if directory.is_dir() else ()
    numbered = [path for path in paths if path.name.isdecimal()]
    for path in numbered:
        if path.is_file() or str(int(path.name)) != path.name:  # 0030, or other digits
            raise CheckpointError(
                f"{path}: not a checkpoint, which is a folder named as its step; move it away, or "
                "give it its name back"
            )
    return sorted(int(path.name) for path in numbered)


def _examine(directory: Path) -> dict[int, str]:
    """The steps of damaged checkpoints, and what is wrong with each."""
    found = {step: checksums.find_damage(directory / str(step)) for step in _steps(directory)}
    # A running training may have deleted one meanwhile.
    return {step: wrong for step, wrong in found.items() if wrong and step in _steps(directory)}


def _list(damaged: Mapping[int, str]) -> str:
    return ", ".join(f"{step} is damaged ({wrong})" for step, wrong in damaged.items())


def _free(path: Path) -> Path:
    """``path``, with .2, .3 … appended if it exists already."""
    names = (path.with_name(f"{path.name}.{number}") for number in itertools.count(2))
    return next(name for name in itertools.chain([path], names) if not name.exists())


def _set_damaged_aside(directory: Path) -> None:
    """Move damaged checkpoints out of the way, provided that an intact one remains."""
    damaged = _examine(directory) if is_primary() else {}
    if not all_processes(not damaged or len(damaged) < len(_steps(directory))):
        raise CheckpointError(
            f"{directory}: no checkpoint is intact: {_list(damaged) or 'see process 0'}; put a "
            "copy back, or start again in another --workdir"
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
    """The first parameter whose stored and expected shapes differ; None if all agree."""
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
    """Open the checkpoints; at the end, and after an error, wait for the last save and close them.

    Unless they are only read, the workdir is locked meanwhile.

    Args:
        workdir: the run's folder.
        read_only: change nothing; another process may be training there.

    Raises:
        CheckpointError: every checkpoint is damaged, or Orbax cannot write to such a path.
        UserError: another run is training there.
        DiskFullError: the disk was full for something written in the context or by a save.
    """
    if not read_only:
        check_path(workdir)
    report = sys.unraisablehook
    sys.unraisablehook = _without_closed_loops(report)
    try:
        with contextlib.nullcontext() if read_only else locked(workdir):
            checkpoints = Checkpoints(workdir, read_only=read_only)
            try:
                yield checkpoints
            except BaseException:
                # A save by several processes might wait for one that has ended. It is given up:
                # the error ends this process (pgfl_jax.distributed.launch).
                if jax.process_count() == 1:
                    checkpoints.close()
                raise
            checkpoints.close()
        sys.unraisablehook = report
    except Exception as error:
        reason = full_disk(error)
        if reason is None:
            raise
        # Orbax began to write more files than it then awaited, and drops them when Python ends.
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        steps = checkpoint_steps(workdir)
        kept = f"the checkpoint of step {steps[-1]} is intact" if steps else "nothing was saved yet"
        raise DiskFullError(
            f"{workdir}: {reason}; {kept}; free space, then the same command goes on"
        ) from error


def _without_closed_loops(report: Callable[[Any], Any]) -> Callable[[Any], None]:
    """A hook for errors that cannot be caught, without those that follow a full disk.

    The first array that does not fit on the disk raises its error and ends the event loop. Every
    later one then fails to report to that loop, and would print a traceback.
    """

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            report(unraisable)

    return hook


def read_main_branch(
    workdir: Path, abstract: Mapping[str, Any], *, checkpoint: str | int, parameters: str
) -> tuple[int, dict[str, Any]]:
    """Read the part of a checkpoint that the main branch needs, as NumPy arrays.

    Args:
        workdir: the run's folder. It is only read, so training may be running there.
        abstract: shapes and dtypes of the wanted ``params`` and ``batch_stats``.
        checkpoint: ``newest``, ``best`` or a step.
        parameters: ``trained`` or ``average``.

    Returns:
        The step, and the variables.

    Raises:
        CheckpointError: there is no such checkpoint or no average, it is damaged, of another
            architecture, or holds a value that is not finite; names the array.
    """
    step = choose_step(workdir, checkpoint)
    folder = (workdir / "checkpoints" / str(step)).absolute()
    if wrong := checksums.find_damage(folder):
        others = [other for other in checkpoint_steps(workdir) if other != step]
        raise CheckpointError(f"{folder}: damaged ({wrong}); other checkpoints: {others}")
    handler = ocp.PyTreeCheckpointHandler()
    wanted = {name: abstract[name] for name in ("params", "batch_stats")}
    tree = {"step": 0} | ({"average": wanted} if parameters == "average" else wanted)
    restore_args = jax.tree.map(lambda leaf: ocp.RestoreArgs(np.ndarray), tree)
    try:
        stored = handler.metadata(folder / "state").tree
        if parameters == "average" and stored["average"] is None:
            raise CheckpointError(
                f"{folder}: no average of the parameters: the run's config.optim.ema_decay is 0"
            )
        present = flatten_dict(stored["average"] if parameters == "average" else stored, sep="/")
        needed = {name: present[name] for name in flatten_dict(wanted, sep="/") if name in present}
        if mismatch := _first_mismatch(needed, wanted):
            raise CheckpointError(f"{folder}: another architecture ({mismatch})")
        args = ocp.args.PyTreeRestore(tree, restore_args=restore_args, partial_restore=True)
        variables = handler.restore(folder / "state", args=args)
    except CheckpointError:
        raise
    except Exception as error:
        raise _unreadable(folder, error) from error
    _check_step(folder, variables.pop("step"))
    variables = variables["average"] if parameters == "average" else variables
    _check_finite(folder, variables)
    return step, variables


def choose_step(workdir: Path, checkpoint: str | int) -> int:
    """The step that ``newest``, ``best`` or a step's number means."""
    directory, steps = (workdir / "checkpoints").absolute(), checkpoint_steps(workdir)
    if not steps:
        raise CheckpointError(f"{directory}: no checkpoint; train first")
    if checkpoint == "newest":
        return steps[-1]
    if checkpoint == "best":
        if (best := best_step(workdir)) is None:
            raise CheckpointError(
                f"{directory}: no checkpoint has been scored yet; take the newest"
            )
        return best
    if not str(checkpoint).isdecimal() or int(checkpoint) not in steps:
        raise CheckpointError(f"{directory}: no checkpoint {checkpoint}; there are {steps}")
    return int(checkpoint)


def stored_options(workdir: Path, step: int) -> dict[str, Any] | None:
    """The options of the run that saved a checkpoint; None if its version did not keep them.

    Reading the checkpoint before this finds out whether the file is damaged.
    """
    path = workdir / "checkpoints" / str(step) / _OPTIONS / "metadata"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def checkpoint_steps(workdir: Path) -> list[int]:
    """The steps of a run's checkpoints, in ascending order."""
    return _steps((workdir / "checkpoints").absolute())


def best_step(workdir: Path) -> int | None:
    """The step with the highest score, the latest of equals; None before the first evaluation.

    Raises:
        CheckpointError: the file with a score is damaged; names it.
    """
    scores = {}
    for step in checkpoint_steps(workdir):
        metrics = workdir / "checkpoints" / str(step) / "metrics" / "metrics"
        if metrics.is_file():
            try:
                scores[step] = float(json.loads(metrics.read_text(encoding="utf-8"))[SCORE])
            except (LookupError, TypeError, ValueError) as error:
                raise CheckpointError(
                    f"{metrics}: damaged; put a copy back, or move the folder of step {step} away"
                ) from error
    return max(scores, key=lambda step: (scores[step], step), default=None)
