"""What the command lines share: options that do not exist and errors, told in one line."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from pgfl_jax.errors import UserError


def run(
    main: Callable[[list[str]], Any], *, required: Sequence[str], interrupted: str = "interrupted"
) -> None:
    """Parse the flags, run ``main`` and end the process with what it returns as exit status.

    Args:
        main: gets the bare arguments, as of ``absl.app.run``.
        required: flags that must be given.
        interrupted: what is printed when the user stops it.
    """
    flags.mark_flags_as_required(required)
    hear_interrupts()
    try:
        app.run(main, flags_parser=parse_flags)
    except (UserError, OSError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        print(interrupted)
        sys.exit(130)


def hear_interrupts() -> None:
    """See to it that every interrupt is raised where it is heard.

    Python drops what is raised while it collects garbage, of which JAX has itself told, or calls
    back a weak reference: an interrupt that comes there is raised again, a moment later.
    """
    shown = sys.unraisablehook

    def again(unraisable: Any) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, 0.02)
        else:
            shown(unraisable)

    sys.unraisablehook = again
    for number in (signal.SIGINT, signal.SIGALRM):
        signal.signal(number, signal.default_int_handler)


def parse_flags(argv: list[str]) -> list[str]:
    """Parse the command line; an option that does not exist is named in one line."""
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError) as error:
        # What ml_collections raises: a KeyError, or one in an AttributeError. Any other is a fault
        # in the configuration file itself.
        inner = error if isinstance(error, KeyError) else error.args[0]
        if not isinstance(inner, KeyError):
            raise
        sys.exit(f"error: --config: no such option: {'. '.join(str(inner.args[0]).splitlines())}")


def writable_folder(folder: Path, option: str) -> Path:
    """Make a folder that shall be written to, before any work is done for it.

    Args:
        folder: made with those above it.
        option: to be named if that is not possible.

    Raises:
        UserError: the folder cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = "" if os.access(folder, os.W_OK) else "no permission"
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        raise UserError(f"{option}: the folder {folder} cannot be written to ({reason})")
    return folder
