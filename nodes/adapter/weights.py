"""Tensors that ComfyUI made in inference mode, made usable by autograd without copying a weight.

ComfyUI runs every node under ``torch.inference_mode``; weights and conditionings made there are inference tensors,
which autograd refuses to save for the backward pass. An alias of the same storage, made outside inference mode, is an
ordinary tensor: the weights stay where they are, and stock sampling goes on using them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["clean", "normalise", "ordinary_tensors"]

Function = TypeVar("Function", bound=Callable)


def ordinary_tensors(execute: Function) -> Function:
    """Decorator of a node's `execute`: what it makes, and what the core caches, are ordinary tensors."""

    @functools.wraps(execute)
    def outside_inference_mode(*args: Any, **kwargs: Any) -> Any:
        with torch.inference_mode(False), torch.no_grad():
            return execute(*args, **kwargs)

    return outside_inference_mode


def alias(tensor: Tensor) -> Tensor:
    """An ordinary tensor over the storage of an inference tensor."""
    empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return empty.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())


def normalise(module: torch.nn.Module) -> None:
    """Make the weights of a loaded module usable by autograd and free of gradients, in place and idempotent.

    To be called after each load: patching in inference mode (LoRA) and reloading put inference tensors back.
    """
    with torch.inference_mode(False), torch.no_grad():
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is None:
                    continue
                if parameter.is_inference():
                    part._parameters[name] = torch.nn.Parameter(alias(parameter), requires_grad=False)
                elif parameter.requires_grad:
                    parameter.requires_grad_(False)
            for name, buffer in part._buffers.items():
                if buffer is not None and buffer.is_inference():
                    part._buffers[name] = alias(buffer)


def clean(value: Any) -> Any:
    """A copy of nested lists, tuples and dicts whose inference tensors are ordinary clones; all else is shared."""
    with torch.inference_mode(False):
        if isinstance(value, Tensor):
            return value.clone() if value.is_inference() else value
        if isinstance(value, dict):
            return {key: clean(item) for key, item in value.items()}
        if type(value) in (list, tuple):
            return type(value)(clean(item) for item in value)
        return value
