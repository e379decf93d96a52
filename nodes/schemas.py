"""Schemas of nodes for every supported ComfyUI: arguments that an older one would refuse are left out."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from comfy_api.latest import io

__all__ = ["advanced", "schema"]


def schema(*, search_aliases: list[str], **options: Any) -> io.Schema:
    """`io.Schema` with further terms by which the node is found in a search (ComfyUI 0.10.0 and later)."""
    return _made(io.Schema, {"search_aliases": search_aliases}, **options)


def advanced(make: Callable[..., io.Input], name: str, **options: Any) -> io.Input:
    """A widget that is hidden until the user shows the advanced inputs (ComfyUI 0.9.2 and later).

    Args:
        make: Its class, `io.Float.Input` and the like.
        name: Its id.
        options: Further arguments of the class.
    """
    return _made(make, {"advanced": True}, name, **options)


def _made(make: Callable, newer: dict[str, Any], *args: Any, **options: Any) -> Any:
    """The result of `make`, called with those newer arguments that this ComfyUI supports."""
    known = inspect.signature(make).parameters
    return make(*args, **options, **{name: value for name, value in newer.items() if name in known})
