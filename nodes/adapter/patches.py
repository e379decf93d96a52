"""Differentiation of patches that change tensors in place: correct gradients, or an error.

Autograd keeps tensors for the backward pass and raises an error if such a tensor was changed in between. With
recomputation it does not detect the change, and the gradient is wrong without an error. So patches of a network run on
copies of their inputs, and autograd keeps copies. Functions around the network, which call it themselves, are refused
if they change their inputs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

__all__ = ["name_of", "on_copies", "patches", "refused_in_place"]

FUNCTIONS = ("sampler_cfg_function", "model_function_wrapper")
LISTS = ("sampler_pre_cfg_function", "sampler_post_cfg_function")


def on_copies(transformer_options: dict[str, Any]) -> dict[str, Any]:
    """Options of a network's blocks whose patches run on copies, so that changes in place can be differentiated."""
    lists, tables = transformer_options.get("patches", {}), transformer_options.get("patches_replace", {})
    return {
        **transformer_options,
        "patches": {name: [_careful(p) if callable(p) else p for p in found] for name, found in lists.items()},
        "patches_replace": {
            name: {block: _careful(patch) for block, patch in table.items()} for name, table in tables.items()
        },
    }


def refused_in_place(model_options: dict[str, Any]) -> dict[str, Any]:
    """Sampling options whose guidance functions raise a ValueError if they change their inputs under gradients."""
    options = dict(model_options)
    options |= {name: _watched(options[name]) for name in FUNCTIONS if name in options}
    options |= {name: [_watched(function) for function in options[name]] for name in LISTS if name in options}
    return options


def patches(model_options: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Pairs of place and patch, for each patch of a model."""
    transformer = model_options.get("transformer_options", {})
    for name, found in transformer.get("patches", {}).items():
        yield from ((name, patch) for patch in found)
    for name, table in transformer.get("patches_replace", {}).items():
        yield from ((f"{name} {block}", patch) for block, patch in table.items())
    yield from ((name, model_options[name]) for name in FUNCTIONS if name in model_options)
    for name in LISTS:
        yield from ((name, patch) for patch in model_options.get(name, ()))
    if "optimized_attention_override" in transformer:
        yield "optimized_attention_override", transformer["optimized_attention_override"]


def name_of(patch: Any) -> str:
    """Module and name of a patch, a function or an object."""
    named = patch if hasattr(patch, "__qualname__") else type(patch)
    return f"{named.__module__}.{named.__qualname__}"


def _careful(patch: Callable) -> Callable:
    @functools.wraps(patch, updated=())
    def call(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return patch(*args, **kwargs)
        args = tuple(value.clone() if isinstance(value, Tensor) else value for value in args)
        with _copies_kept():
            return patch(*args, **kwargs)

    return call


def _copies_kept() -> saved_tensors_hooks:
    """A context in which autograd keeps copies; it passes them to the surrounding hooks of recomputation, if any."""
    around = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", lambda ignore_is_tracing: None)(False)
    pack, unpack = around or (lambda tensor: tensor, lambda tensor: tensor)
    return saved_tensors_hooks(lambda tensor: pack(tensor.detach().clone()), unpack)


def _watched(function: Callable) -> Callable:
    @functools.wraps(function, updated=())
    def call(*args: Any, **kwargs: Any) -> Any:
        before = [(tensor, tensor._version) for tensor in _tensors(args)]
        result = function(*args, **kwargs)
        if torch.is_grad_enabled() and any(tensor._version != version for tensor, version in before):
            raise ValueError(
                f"model: {name_of(function)} changes its inputs in place, so it cannot be differentiated; connect the "
                "model as it is before that patch"
            )
        return result

    return call


def _tensors(args: Iterable[Any]) -> list[Tensor]:
    """Tensors with a version counter among arguments, and in dictionaries and lists among them."""
    found: list[Any] = []
    for value in args:
        if isinstance(value, dict):
            value = list(value.values())
        found += value if isinstance(value, (list, tuple)) else [value]
    return [value for value in found if isinstance(value, Tensor) and not value.is_inference()]
