"""Conversion of ComfyUI's weights (inference tensors, weights lent to a layer) to tensors that autograd can use.

ComfyUI runs every node under ``torch.inference_mode``; weights and conditionings made there are inference tensors,
which autograd refuses to save for the backward pass. An alias of the same storage, made outside inference mode, is an
ordinary tensor: the weights stay where they are, and stock sampling goes on using them.

Weights that are not on the device of the computation, or quantised, are lent: ComfyUI copies each layer's into a buffer
when the layer runs. The next layer may get the same buffer, and a page of it may go to another model before the
backward pass, which would then compute with other values. Layers compute with copies of lent weights (`fresh_weights`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .checks import checked

__all__ = ["clean", "fresh_weights", "lent", "normalise", "normalise_format", "ordinary_tensors"]

Result = TypeVar("Result")


def ordinary_tensors(execute: Callable[..., Result]) -> Callable[..., Result]:
    """Decorator of a node's `execute`: its inputs are `checked`, its results and the core's caches ordinary tensors."""

    @functools.wraps(execute)
    def outside_inference_mode(node: Any, **inputs: Any) -> Result:
        with torch.inference_mode(False), torch.no_grad():
            return execute(node, **checked(node, inputs))

    return outside_inference_mode


def alias(tensor: Tensor) -> Tensor:
    """An ordinary tensor over the storage of an inference tensor."""
    empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return empty.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())


def normalise(module: nn.Module) -> None:
    """Make the weights of a loaded module usable by autograd and free of gradients, in place and idempotent.

    To be called after each load: patching in inference mode (LoRA) and reloading put inference tensors back. Dynamic
    and quantised weights keep their tensors; parameters keep the attributes that ComfyUI gave them.
    """
    with torch.inference_mode(False), torch.no_grad():
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is None:
                    continue
                parameter.requires_grad_(False)
                if parameter.is_inference() and _plain(parameter) and not _dynamic(part):
                    ordinary = nn.Parameter(alias(parameter), requires_grad=False)
                    ordinary.__dict__.update(parameter.__dict__)
                    part._parameters[name] = ordinary
            for name, buffer in part._buffers.items():
                if buffer is not None and buffer.is_inference() and _plain(buffer):
                    part._buffers[name] = alias(buffer)


def normalise_format(latent_format: Any) -> None:
    """The same for the tensors of a latent format (Wan, Qwen-Image, Playground), which is no module."""
    for name, value in vars(latent_format).items():
        if isinstance(value, Tensor) and value.is_inference():
            with torch.inference_mode(False):
                setattr(latent_format, name, alias(value))


@contextmanager
def fresh_weights(module: nn.Module, device: torch.device) -> Iterator[None]:
    """A context in which layers compute with copies of the weights lent to them, if gradients are on.

    The backward pass keeps the copies: those of a whole call at most, those of one block with recomputation by blocks.

    Args:
        module: A loaded module.
        device: The device of its computation.
    """
    layers = [part for part in module.modules() if hasattr(part, "weight_function") and lent(part, device)]
    functions = [(layer, name) for layer in layers for name in ("weight_function", "bias_function")]
    for layer, name in functions:
        setattr(layer, name, [*getattr(layer, name), _copy])
    try:
        yield
    finally:
        for layer, name in functions:
            setattr(layer, name, [function for function in getattr(layer, name) if function is not _copy])


def lent(layer: nn.Module, device: torch.device) -> bool:
    """Whether ComfyUI lends a layer its weights for each call."""
    own = [parameter for parameter in layer._parameters.values() if parameter is not None]
    return _dynamic(layer) or any(parameter.device != device or not _plain(parameter) for parameter in own)


def _copy(weight: Tensor) -> Tensor:
    return weight.clone() if torch.is_grad_enabled() else weight


def _dynamic(layer: nn.Module) -> bool:
    """Whether a layer's parameters are placeholders for pages of ComfyUI's dynamic memory."""
    return hasattr(layer, "_v")


def _plain(tensor: Tensor) -> bool:
    """Whether a tensor is a plain tensor of values, not quantised or otherwise packed."""
    return type(tensor) in (Tensor, nn.Parameter)


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
