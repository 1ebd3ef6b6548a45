"""What the command lines share: options that do not exist and errors, told in one line."""

import sys
from collections.abc import Callable, Sequence
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
    try:
        app.run(main, flags_parser=parse_flags)
    except (UserError, OSError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        print(interrupted)
        sys.exit(130)


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
