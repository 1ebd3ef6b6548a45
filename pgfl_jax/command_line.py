"""What all command lines share: errors and mistyped options end in one line."""

import argparse
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from pgfl_jax.errors import UserError

# What ml_collections puts before the error of a configuration file.
_CONFIG_FAILED = "Configuration is not available because of an earlier failure to load: "


def run(
    main: Callable[[list[str]], Any], *, required: Sequence[str], interrupted: str = "interrupted"
) -> None:
    """Parse the flags, run ``main`` and end the process with what it returns as exit status.

    Args:
        main: gets the program's name and the bare arguments, as from ``absl.app.run``.
        required: flags that must be given.
        interrupted: what is printed when the user stops it.
    """
    flags.mark_flags_as_required(required)
    keep_interrupts()
    try:
        app.run(main, flags_parser=parse_flags)
    except (UserError, OSError) as error:
        reason = str(error).removeprefix(_CONFIG_FAILED)
        sys.exit(f"error: {' '.join(reason.split())}")
    except KeyboardInterrupt:
        print(interrupted)
        sys.exit(130)


def keep_interrupts() -> None:
    """Resend an interrupt that Python has dropped.

    Python only reports an exception that is raised in a callback of the garbage collector or of a
    weak reference. JAX has such callbacks, and a Ctrl-C that came during a collection is raised in
    the first of them. Two of eight interrupts were lost while the program started.
    """
    report = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
            signal.setitimer(signal.ITIMER_REAL, 0.05)  # when this hook has returned
        else:
            report(unraisable)

    sys.unraisablehook = hook


def parse_flags(argv: list[str]) -> list[str]:
    """Parse the command line; end with one line that names an option that does not exist."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        sys.exit(f"error: {' '.join(str(error).split())} (--help lists the options)")
    except (AttributeError, KeyError) as error:
        # ml_collections raises a KeyError, or an AttributeError that holds one. Any other error
        # comes from the configuration file itself.
        inner = error if isinstance(error, KeyError) else error.args[0]
        if not isinstance(inner, KeyError):
            raise
        sys.exit(f"error: --config: no such option: {'. '.join(str(inner.args[0]).splitlines())}")


def with_stored_config(argv: list[str], stored: Path) -> list[str]:
    """The command line; an evaluation without ``--config`` gets the run's stored configuration.

    Args:
        argv: the arguments, without the program's name.
        stored: the file configs/stored.py, which reads the configuration of a run.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("config", "mode", "workdir"):
        parser.add_argument(f"--{name}")
    given, _ = parser.parse_known_args(argv)
    if given.mode != "evaluate" or given.config or not given.workdir:
        return argv
    return [f"--config={stored}:{given.workdir}", *argv]


def writable_folder(folder: Path, option: str) -> Path:
    """Make a folder that will be written to, before any work is done for it.

    Args:
        folder: made together with its parents.
        option: the option that gave it, for the error.

    Raises:
        UserError: the folder cannot be made or written to, or it is a URL.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(folder)):  # Path has made one slash of two
        raise UserError(
            f"{option}: {str(folder).replace(':/', '://', 1)} is a URL; only folders of a mounted "
            "file system are supported"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = "" if os.access(folder, os.W_OK) else "no permission"
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        raise UserError(f"{option}: the folder {folder} cannot be written to ({reason})")
    return folder
