"""Flags of the command lines that absl parses: the configuration file, and paths.

ml_collections is imported late, since the wheel does not require it.
"""

import importlib.machinery
import importlib.util
import os
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from pgfl_jax.command_line import end_mistyped
from pgfl_jax.errors import UserError
from pgfl_jax.options import ConfigError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

flags.disclaim_key_flags()  # --help lists a flag with the program that defines it

_WANTED = (
    "a configuration is a Python file whose get_config() returns a ConfigDict "
    "(see configs/default.py)"
)


def define_path(name: str, default: str | None, help_text: str) -> None:
    """Define a flag that holds a path; a leading ``~`` becomes the user's folder."""
    flags.DEFINE(_PathParser(), name, default, help_text, serializer=flags.ArgumentSerializer())


def define_config(default: str | None) -> None:
    """Define ``--config=FILE``, whose options ``--config.a.b=…`` change."""
    from ml_collections import config_flags

    words = "Configuration file, e.g. configs/default.py."
    try:
        config_flags.DEFINE_config_file("config", default, words)
    except (flags.Error, UnicodeDecodeError) as error:  # it reads --flagfile
        end_mistyped(error)
    flags.FLAGS["config"].parser = _ConfigParser()


def load_config(given: str) -> "ConfigDict":
    """The configuration that a file's ``get_config`` returns.

    Args:
        given: ``FILE``, or ``FILE:TEXT`` to call it with a text.

    Raises:
        ConfigError: the file is missing or fails, or it returns anything else.
        OSError: ``get_config`` cannot read a file.
    """
    from ml_collections import ConfigDict

    name, *text = given.split(":", 1)
    path = os.path.expanduser(name)
    if not Path(path).is_file():
        raise ConfigError(f"--config={given}: there is no file {path}")
    # Without the suffix .py, only a loader that is named reads a file as Python.
    loader = importlib.machinery.SourceFileLoader("config_file", path)
    spec = importlib.util.spec_from_loader("config_file", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    try:
        loader.exec_module(module)
        config = module.get_config(*text)
    except (UserError, OSError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}{_line(error, path)}"
        raise ConfigError(f"--config={given}: {reason}; {_WANTED}") from error
    if not isinstance(config, ConfigDict):
        raise ConfigError(
            f"--config={given}: get_config() returns {type(config).__name__}; {_WANTED}"
        )
    return config.lock()


class _ConfigParser(flags.ArgumentParser):
    def parse(self, argument: str) -> "ConfigDict":
        return load_config(argument)


class _PathParser(flags.ArgumentParser):
    def parse(self, argument: str) -> str:
        return os.path.expanduser(argument)


def _line(error: Exception, path: str) -> str:
    """The line of a file at which an error was raised, for a message; empty if unknown."""
    frames = traceback.extract_tb(error.__traceback__)
    numbers = [frame.lineno for frame in frames if frame.filename == path]
    return f", line {numbers[-1]}" if numbers else ""
