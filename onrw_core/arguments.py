"""Checks of arguments where they enter the library: an error names the argument, what is wrong, and the remedy."""

from __future__ import annotations

import math
import os
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args

__all__ = ["as_path", "as_whole", "check_type", "check_types", "is_number", "shown"]


def check_type(
    name: str, value: object, types: Any, remedy: str | None = None, error: type[ValueError] = ValueError
) -> None:
    """Refuse a value of another type.

    Args:
        name: Name of the argument.
        value: Its value.
        types: A type, or a union such as ``str | None``.
        remedy: What to do, in place of "give" and the names of the types.
        error: The kind of the error.

    Raises:
        ValueError: See above, as `error`.
    """
    if isinstance(value, types):
        return
    names = [each.__name__ for each in (get_args(types) if isinstance(types, UnionType) else (types,))]
    remedy = remedy or f"give {' or '.join('None' if each == NoneType.__name__ else each for each in names)}"
    raise error(f"{name}: is a {type(value).__name__}; {remedy}")


def check_types(**given: tuple[object, Any]) -> None:
    """`check_type` for several arguments: name -> (value, types).

    Raises:
        ValueError: One is of another type.
    """
    for name, (value, types) in given.items():
        check_type(name, value, types)


def as_whole(name: str, value: object, least: int, most: int | None = None, unit: str = "") -> int:
    """A whole number of Python or NumPy.

    Args:
        name: Name of the argument.
        value: Its value.
        least, most: Bounds; None for no upper bound.
        unit: Follows "a whole number" in the error, such as " of pixels".

    Raises:
        ValueError: It is none, or out of bounds.
    """
    if isinstance(value, Integral) and not isinstance(value, bool):
        number = int(value)
        if least <= number and (most is None or number <= most):
            return number
    bounds = f"at least {least}" if most is None else f"from {least} to {most}"
    raise ValueError(f"{name}: is {shown(value)}; give a whole number{unit}, {bounds}")


def is_number(value: object) -> bool:
    """Whether a value is a finite real number of Python or NumPy; a bool is none."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def as_path(name: str, value: object, error: type[ValueError] = ValueError) -> Path:
    """The path of a file.

    Args:
        name: Name of the argument.
        value: A str or a `os.PathLike` of str.
        error: The kind of the error.

    Raises:
        ValueError: It is none, or holds what no file's name can, as `error`.
    """
    check_type(name, value, str | os.PathLike, "give a path", error)
    path = os.fspath(value)  # type: ignore[call-overload]
    check_type(name, path, str, "give a path of text", error)
    try:
        usable = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        usable = False
    if not usable:
        raise error(f"{name}: {path!a} has characters that no file's name can have; give another path")
    return Path(path)


def shown(value: object) -> str:
    """A value in an error: a number itself, anything else by its type, since it may be long or secret."""
    return str(value) if isinstance(value, Real) and not isinstance(value, bool) else f"a {type(value).__name__}"
