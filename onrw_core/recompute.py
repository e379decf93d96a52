"""Activations of one block at a time: the others are computed again in the backward pass (Chen et al. 2016).

A whole step of a large UNet, or a whole decoding at 1024 px, holds more than a card has even if all other steps are
recomputed. The blocks between two skip connections are few, and their inputs are small beside what is inside them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

__all__ = ["outermost", "recomputed"]


def outermost(network: nn.Module, kinds: Collection[str]) -> Iterator[nn.Module]:
    """The modules whose class has one of these names, without those inside another of them."""
    for child in network.children():
        if type(child).__name__ in kinds:
            yield child
        else:
            yield from outermost(child, kinds)


@contextmanager
def recomputed(
    blocks: Iterable[nn.Module], again: Callable[[], AbstractContextManager[Any]] = nullcontext
) -> Iterator[None]:
    """Calls of these blocks inside the context keep their inputs alone, when gradients are on.

    Args:
        blocks: None of them inside another.
        again: Makes a context for the second computation, which happens later: what has been put in place around the
            first, and taken away since.
    """
    own = {block: block.__dict__.get("forward") for block in blocks}
    try:
        for block in own:
            block.forward = _recomputed(block.forward, again)
        yield
    finally:
        for block, forward in own.items():
            if forward is None:
                block.__dict__.pop("forward", None)
            else:
                block.forward = forward


def _recomputed(forward: Callable[..., Any], again: Callable[[], AbstractContextManager[Any]]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        # Options in dicts may be changed for the next block before this one is computed again.
        args = tuple(dict(value) if isinstance(value, dict) else value for value in args)
        kwargs = {name: dict(value) if isinstance(value, dict) else value for name, value in kwargs.items()}
        contexts = (nullcontext(), again())
        return checkpoint(
            forward, *args, use_reentrant=False, preserve_rng_state=False, context_fn=lambda: contexts, **kwargs
        )

    return call
