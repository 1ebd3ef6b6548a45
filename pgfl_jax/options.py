"""Options as fields of dataclasses: conversion to the field's type, and its checks.

A field says everything about an option: its name, type, default and, by ``Annotated``, its range.
"""

import dataclasses
import math
import os
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal

from pgfl_jax.errors import UserError


class ConfigError(UserError):
    """A configuration that cannot work; the message names the option and the remedy."""


@dataclasses.dataclass(frozen=True)
class Check:
    """A condition on an option's value, and what an error says when it does not hold."""

    holds: Callable[[Any], bool]
    message: str


@dataclasses.dataclass(frozen=True)
class Change:
    """What becomes of an option's value."""

    function: Callable[[Any], Any]


_POSITIVE = Check(lambda value: value > 0, "must be above 0")
_NOT_NEGATIVE = Check(lambda value: value >= 0, "must not be negative")

PositiveInt = Annotated[int, _POSITIVE]
PositiveFloat = Annotated[float, _POSITIVE]
NonNegativeInt = Annotated[int, _NOT_NEGATIVE]
NonNegativeFloat = Annotated[float, _NOT_NEGATIVE]
Fraction = Annotated[float, Check(lambda value: 0 <= value <= 1, "must be in [0, 1]")]
PositiveFraction = Annotated[float, Check(lambda value: 0 < value <= 1, "must be in (0, 1]")]
FractionBelowOne = Annotated[float, Check(lambda value: 0 <= value < 1, "must be in [0, 1)")]
# A leading ~ becomes the user's folder: few shells expand it after --option=.
FilePath = Annotated[str, Change(os.path.expanduser)]


def convert(expected: Any, value: Any, path: str) -> Any:
    """Convert ``value`` to the type ``expected`` and check it.

    Args:
        expected: a dataclass, ``Literal``, ``tuple``, ``Annotated`` with checks and changes, or a
            plain type.
        value: from a configuration file or from JSON, where tuples are lists.
        path: the option's name for errors, ``config.data.height``.

    Raises:
        ConfigError: unknown option, wrong type or out of range; one line that names the option.
    """
    origin, args = typing.get_origin(expected), typing.get_args(expected)
    if origin is Annotated:
        value = convert(args[0], value, path)
        for rule in args[1:]:
            if isinstance(rule, Change):
                value = rule.function(value)
            elif not rule.holds(value):
                raise ConfigError(f"{path} = {value!r}: {rule.message}")
        return value
    if dataclasses.is_dataclass(expected):
        return _convert_dataclass(expected, value, path)
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{path}: {value!r} is not one of {', '.join(map(str, args))}")
        return value
    if origin is tuple:
        return _convert_tuple(args, value, path)
    return _convert_scalar(expected, value, path)


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested groups as pairs of a dotted name and a value.

    >>> dict(flatten({"seed": 0, "data": {"height": 256}}))
    {'seed': 0, 'data.height': 256}
    """
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of :func:`flatten`.

    >>> nest({"seed": 0, "data.height": 256})
    {'seed': 0, 'data': {'height': 256}}
    """
    nested: dict[str, Any] = {}
    for name, value in values.items():
        *groups, option = name.split(".")
        group = nested
        for step in groups:
            group = group.setdefault(step, {})
        group[option] = value
    return nested


def _convert_scalar(expected: Any, value: Any, path: str) -> Any:
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise ConfigError(f"{path}: expected {expected.__name__}, got {value!r}")
    if expected is float and not math.isfinite(value):
        raise ConfigError(f"{path} = {value!r}: must be finite")
    return value


def _convert_dataclass(cls: Any, value: Any, path: str) -> Any:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path}: expected a group of options, got {value!r}")
    hints = typing.get_type_hints(cls, include_extras=True)
    for name in value:
        if name not in hints:
            raise ConfigError(f"{path}.{name}: unknown option; known are {', '.join(hints)}")
    return cls(
        **{name: convert(hints[name], item, f"{path}.{name}") for name, item in value.items()}
    )


def _convert_tuple(args: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{path}: expected a tuple, got {value!r}")
    types_ = args[:1] * len(value) if args[-1] is Ellipsis else args
    if len(types_) != len(value):
        raise ConfigError(f"{path}: expected {len(types_)} values, got {value!r}")
    return tuple(
        convert(type_, item, f"{path}[{i}]")
        for i, (type_, item) in enumerate(zip(types_, value, strict=True))
    )
