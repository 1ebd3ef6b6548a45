"""Why an artifact was not written, in one line."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from pgfl_jax.errors import DiskFullError, UserError, full_disk
from pgfl_jax.export.formats import FORMATS
from pgfl_jax.export.running import Run, RuntimeMissing
from pgfl_jax.export.verify import Finding


class ExportFailed(UserError):
    """An artifact that was not written, since it is wrong; the message says what is."""


@contextlib.contextmanager
def packages_of(name: str) -> Iterator[None]:
    """The error of a missing package as a line that says what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(
            f"--formats={name}: the package {error.name} is not installed; "
            f"pip install 'pgfl-jax[{FORMATS[name].extra}]'"
        ) from error


@contextlib.contextmanager
def room_for(folder: Path) -> Iterator[None]:
    """The error of a full disk as one line, whatever a library made of it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if reason := full_disk(error):
            raise DiskFullError(
                f"{folder}: {reason}; nothing was written; free space and export again"
            ) from error
        raise


def need(run: Run, name: str) -> None:
    """UserError if the first runtime of a model is not installed."""
    if isinstance(run.error, RuntimeMissing) and run.runtime == run.model["runtimes"][0]:
        raise UserError(
            f"--formats={name}: {run.error}, so that the model cannot be verified; "
            f"pip install 'pgfl-jax[{FORMATS[name].extra}]'"
        )


def refuse(found: list[Finding], name: str) -> None:
    """ExportFailed with everything that is wrong, if anything is."""
    wrong = [finding.line for finding in found if finding.passed is False]
    if wrong:
        raise ExportFailed(f"{name}: not written, since it is wrong: {'; '.join(wrong)}")
