"""Check of a node's inputs against its own schema, where `execute` begins.

ComfyUI checks the values of widgets before a graph runs. What a link brings it checks by the declared type alone: a
text that is none of the choices, a number out of range, or a value of another type arrive as they are.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
from comfy_api.latest import io
from torch import Tensor

from ...onrw_core.arguments import as_whole, check_type, is_number, shown
from ...onrw_core.imaging.pixels import check_finite, check_tensor

__all__ = ["checked", "numbered"]

LISTED = 20  # choices that an error names


def checked(node: type[io.ComfyNode], inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs of a node's `execute`, without optional ones that are None; whole floats for INT are made integers.

    A choice that the node's `validate_inputs` asks for is left to the node.

    Raises:
        ValueError: A value that the schema does not allow, or an image or a mask that no node can use.
    """
    own = inspect.signature(node.validate_inputs).parameters
    sockets = {socket.id: socket for socket in node.define_schema().inputs}
    found = {}
    for name, value in inputs.items():
        if value is not None:
            found[name] = _checked(sockets[name], value, name in own)
        elif not sockets[name].optional:
            raise ValueError(f"{name}: is None, because the connected node has none to give; connect another")
    return found


def numbered(name: str, index: int, count: int) -> str:
    """The name of an input, with the number of one image of a batch of `count`."""
    return name if count == 1 else f"{name} {index} (from 0)"


def _checked(socket: io.Input, value: Any, own: bool) -> Any:
    name = socket.id
    if isinstance(socket, io.Combo.Input):
        check_type(name, value, str, "connect a text that is one of the choices")
        if not own and value not in socket.options:
            known = ", ".join(map(str, socket.options[:LISTED]))
            raise ValueError(f"{name}: {value!r} is none of the choices; choose from {known}")
    elif isinstance(socket, io.String.Input):
        check_type(name, value, str, "connect a text")
    elif isinstance(socket, io.Boolean.Input):
        check_type(name, value, bool | int | np.bool_, "connect a BOOLEAN")
        return bool(value)
    elif isinstance(socket, io.Int.Input):
        whole = int(value) if is_number(value) and value == int(value) else value
        return as_whole(name, whole, socket.min, socket.max)
    elif isinstance(socket, io.Float.Input):
        if not is_number(value) or not socket.min <= value <= socket.max:
            raise ValueError(f"{name}: is {shown(value)}; give a number from {socket.min:g} to {socket.max:g}")
    elif isinstance(socket, io.Image.Input):
        _check_image(name, value)
    elif isinstance(socket, io.Mask.Input):
        check_type(name, value, Tensor, "connect a MASK")
        check_tensor(value, name)
        if value.ndim < 2 or value.numel() == 0:
            raise ValueError(f"{name}: has shape {tuple(value.shape)}; connect a MASK of shape (batch, height, width)")
        check_finite(value, name)
    return value


def _check_image(name: str, image: Any) -> None:
    check_type(name, image, Tensor, "connect an IMAGE")
    check_tensor(image, name)
    if image.ndim != 4 or image.shape[-1] not in (3, 4) or image.numel() == 0:
        raise ValueError(
            f"{name}: has shape {tuple(image.shape)}; connect an IMAGE of shape (batch, height, width, 3 or 4) "
            "with at least one image"
        )
    for index, one in enumerate(image):
        check_finite(one, numbered(name, index, len(image)))
