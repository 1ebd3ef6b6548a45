"""What all command lines share: errors and mistyped options end in one line."""

import argparse
import io
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags

from pgfl_jax.errors import UserError
from pgfl_jax.files import replacing

flags.disclaim_key_flags()  # --help lists a flag with the program that defines it


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
        sys.exit(guarded(lambda: app.run(main, flags_parser=parse_flags)))
    except KeyboardInterrupt:
        print(interrupted)
        sys.exit(130)


def guarded(work: Callable[[], int | None], words: Callable[[str], str] = str) -> int:
    """Do the work of a command line; an error that a user can fix is one line on stderr.

    Args:
        work: does everything, and returns the exit status.
        words: adapts an error's line to the names of this command's options.

    Returns:
        The exit status, 1 after an error.
    """
    print_anywhere()
    try:
        return work() or 0
    except (UserError, OSError) as error:
        print(f"error: {words(one_line(error))}", file=sys.stderr)
        return 1


def print_anywhere() -> None:
    """Print ``?`` for a character that the terminal's encoding lacks, such as Latin-1's en dash.

    Python would raise an error, except on stderr, where it prints an escape.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def one_line(error: UserError | OSError) -> str:
    """An error's message as one line.

    Our own messages say enough. The system's do not say where it was, so the traceback of an error
    that was raised in a library is kept in ``WORKDIR/error.log``, which the line then names. If it
    cannot be written, it goes to stderr, unless the error names a file.
    """
    line = " ".join(str(error).split())
    if isinstance(error, UserError) or _is_ours(error):
        return line
    text = "".join(traceback.format_exception(error))
    try:
        with replacing(_workdir() / "error.log") as path:
            path.write_text(text, encoding="utf-8")
    except OSError:
        if error.filename is None:
            print(text, end="", file=sys.stderr)
        return line
    return f"{line} (see {_workdir() / 'error.log'})"


def _is_ours(error: OSError) -> bool:
    """Whether code of this repository raised the error, or called the system itself."""
    frames = traceback.extract_tb(error.__traceback__)
    root = Path(__file__).parents[1]
    names = "pgfl_jax", "input_pipeline", "benchmarks", "studies", "configs", "main.py"
    return bool(frames) and any(
        Path(frames[-1].filename).is_relative_to(root / name) for name in names
    )


def _workdir() -> Path:
    """The run's folder; FileNotFoundError if the command has none."""
    if "workdir" not in flags.FLAGS or not (given := flags.FLAGS["workdir"].value):
        raise FileNotFoundError("no --workdir")
    return Path(given)


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
    except (flags.Error, UnicodeDecodeError) as error:  # the latter: a flag file that is no text
        end_mistyped(error)
    except (AttributeError, KeyError) as error:
        # ml_collections raises a KeyError, or an AttributeError that holds one.
        inner = error if isinstance(error, KeyError) else error.args[0]
        if not isinstance(inner, KeyError):
            raise
        sys.exit(f"error: --config: no such option: {'. '.join(str(inner.args[0]).splitlines())}")


def end_mistyped(error: Exception) -> NoReturn:
    """End with one line about a command line that absl cannot parse."""
    reason = str(error).replace("ERROR:: Unable to open flagfile", "--flagfile")
    if isinstance(error, UnicodeDecodeError):
        reason = "--flagfile: not a text file"
    sys.exit(f"error: {' '.join(reason.split())} (--help lists the options)")


def user_path(text: str) -> Path:
    """A path as the user typed it; a leading ``~``, which not all shells expand, is the home.

    Raises:
        ArgumentTypeError: it is empty, as a variable that is not set; not the current folder.
    """
    if not text:
        raise argparse.ArgumentTypeError("an empty path; is a variable not set?")
    return Path(text).expanduser()


def with_stored_config(argv: list[str], stored: Path) -> list[str]:
    """The command line; without ``--config`` it gets the run's stored one, except for training.

    Args:
        argv: the arguments, without the program's name.
        stored: the file configs/stored.py, which reads the configuration of a run.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("config", "mode", "workdir"):
        parser.add_argument(f"--{name}")
    given, _ = parser.parse_known_args(argv)
    if given.mode not in ("evaluate", "export", "report") or given.config or not given.workdir:
        return argv
    return [f"--config={stored}:{user_path(given.workdir)}", *argv]


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
