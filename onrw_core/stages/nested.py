"""Nested lists, tuples and dicts of tensors and plain values as JSON and a table of tensors, for safetensors files.

In the JSON each tensor and each container is an object with one entry that tells its kind; all else stands for itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torch import Tensor

__all__ = ["pack", "unpack", "unsupported"]

PLAIN = (bool, int, float, str, type(None))
TENSOR, LIST, TUPLE, DICT = "tensor", "list", "tuple", "dict"


def unsupported(value: Any, name: str = "") -> Iterator[str]:
    """Names of the parts that `pack` cannot store: the nearest dictionary keys above them."""
    if isinstance(value, dict):
        for key, item in value.items():
            if isinstance(key, str):
                yield from unsupported(item, key)
            else:
                yield name
    elif type(value) in (list, tuple):
        for item in value:
            yield from unsupported(item, name)
    elif type(value) not in PLAIN and type(value) is not Tensor or (type(value) is float and not math.isfinite(value)):
        yield name


def pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """The JSON value of `value`, whose tensors are added to `tensors` under names that begin with `name`."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {TENSOR: name}
    if isinstance(value, dict):
        return {DICT: {key: pack(item, f"{name}.{key}", tensors) for key, item in value.items()}}
    if isinstance(value, (list, tuple)):
        items = [pack(item, f"{name}.{index}", tensors) for index, item in enumerate(value)]
        return {TUPLE if isinstance(value, tuple) else LIST: items}
    return value


def unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `pack`.

    Raises:
        KeyError: A tensor is missing.
        ValueError: The JSON is not of `pack`, or a tensor holds values that are not finite.
    """
    if not isinstance(value, (dict, list)):
        return value
    if isinstance(value, list) or len(value) != 1:
        raise ValueError("a part of it is of no known kind")
    ((kind, content),) = value.items()
    if kind == TENSOR and isinstance(content, str):
        tensor = tensors[content]
        if not tensor.isfinite().all():
            raise ValueError(f"{content} holds values that are not finite numbers")
        return tensor
    if kind == DICT and isinstance(content, dict):
        return {key: unpack(item, tensors) for key, item in content.items()}
    if kind in (LIST, TUPLE) and isinstance(content, list):
        items = [unpack(item, tensors) for item in content]
        return tuple(items) if kind == TUPLE else items
    raise ValueError("a part of it is of no known kind")
