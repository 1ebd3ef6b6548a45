"""One run at a time in a workdir."""

import contextlib
import errno
import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from pgfl_jax.distributed.collectives import all_processes, is_primary
from pgfl_jax.errors import UserError

_NAME = ".lock"
_held: dict[Path, int] = {}  # the descriptors of this process's locks, by their workdirs


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Keep other runs out of a workdir; the processes of one run share it.

    Process 0 holds a lock of the operating system on ``workdir/.lock``, which ends with the
    process, however that ends. The file stays, and names the last holder. Whatever fails once the
    folder is gone, fails for that reason.

    Raises:
        UserError: another run is training there; or the folder was deleted or moved meanwhile.
    """
    with contextlib.ExitStack() as stack:
        if is_primary():
            workdir.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((workdir / _NAME).open("a+", encoding="utf-8"))
            free = _lock(file.fileno(), workdir)
            if free:
                _write_holder(file.fileno())
        else:
            free = True
        _refuse(workdir, free)
        if is_primary():
            _held[workdir] = file.fileno()
            stack.callback(_held.pop, workdir)
        try:
            yield
        except Exception as error:
            if _is_lost(workdir):
                raise _lost(workdir) from error
            raise


def check_held(workdir: Path) -> None:
    """Raise a UserError if the folder of :func:`locked` was deleted, moved away or replaced."""
    if not all_processes(not _is_lost(workdir)):
        raise _lost(workdir)


def check_unlocked(workdir: Path) -> None:
    """Raise a UserError if another run is training in a workdir; for an early answer."""
    free = True
    if is_primary() and (workdir / _NAME).exists():
        with (workdir / _NAME).open("r+", encoding="utf-8") as file:
            free = _lock(file.fileno(), workdir)
    _refuse(workdir, free)


def _lock(descriptor: int, workdir: Path) -> bool:
    """Whether nobody else holds the lock; then this process does until it closes the file."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # some network file systems have no locks
        print(
            f"warning: {workdir} cannot be locked ({error.strerror}); start no second run there",
            file=sys.stderr,
            flush=True,
        )
    return True


def _write_holder(descriptor: int) -> None:
    """For the message of a second run; a full disk may leave it out."""
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())


def _is_lost(workdir: Path) -> bool:
    """Whether the file that this process has locked is no longer ``workdir/.lock``."""
    if workdir not in _held:  # process 0 has it
        return False
    try:
        return not os.path.samestat(os.stat(workdir / _NAME), os.fstat(_held[workdir]))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
            return True
        raise


def _lost(workdir: Path) -> UserError:
    return UserError(
        f"--workdir={workdir}: deleted, moved or replaced during training (its {_NAME} is gone, or "
        "another); move it back, and the same command goes on from its newest checkpoint"
    )


def _refuse(workdir: Path, free: bool) -> None:
    if all_processes(free):
        return
    holder = (workdir / _NAME).read_text(encoding="utf-8") or "unknown"
    raise UserError(
        f"--workdir={workdir}: another run is training there ({holder}); wait for it, stop it, or "
        "use another --workdir"
    )
