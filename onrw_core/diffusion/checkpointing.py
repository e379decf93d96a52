"""Gradient checkpointing by blocks: activations are recomputed in the backward pass (Chen et al. 2016).

The activations of one step of a large UNet, or of one decoding at 1024 px, exceed the memory of a GPU even if all other
steps are recomputed. The inputs of the blocks are small compared with the activations inside the blocks, so only the
inputs are kept.

Networks that are written for sampling only add to a block's input in place, after its norm saved it for the backward
pass. Autograd then raises an error; with recomputation there is no check, and the gradient is wrong. So blocks and the
norms inside them work on copies of their inputs, with recomputation always, without it where a network needs it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = ["CheckpointingOnDemand", "on_copies", "outermost", "recomputed"]

log = logging.getLogger(__name__)
Result = TypeVar("Result")


class CheckpointingOnDemand(Generic[Result]):
    """Calls a function without checkpointing until a GPU's memory is exhausted, and with it from then on.

    Args:
        function: Takes ``(x, generator, checkpointing=...)`` and changes nothing but the generator's state.
        checkpointing: Whether to begin with it.
    """

    def __init__(self, function: Callable[..., Result], checkpointing: bool = False) -> None:
        self.function, self.checkpointing = function, checkpointing

    def __call__(self, x: Tensor, generator: torch.Generator) -> Result:
        """The function's result; a second attempt draws the same from `generator` as the first.

        Raises:
            torch.cuda.OutOfMemoryError: The memory is too small with checkpointing as well.
        """
        if not self.checkpointing:
            before = generator.get_state()
            try:
                return self.function(x, generator, checkpointing=False)
            except torch.cuda.OutOfMemoryError:
                log.warning("GPU memory is too small for all activations; they are recomputed, which takes longer")
            generator.set_state(before)
            self.checkpointing = True
        # Outside of the handler, where the traceback would keep the memory of the failed attempt allocated.
        return self.function(x, generator, checkpointing=True)


def outermost(network: nn.Module, kinds: Collection[str]) -> Iterator[nn.Module]:
    """The modules whose class name ends with one of `kinds`, except those inside another such module."""
    for child in network.children():
        if type(child).__name__.endswith(tuple(kinds)):
            yield child
        else:
            yield from outermost(child, kinds)


def recomputed(
    blocks: Iterable[nn.Module], again: Callable[[], AbstractContextManager[Any]] = nullcontext
) -> AbstractContextManager[None]:
    """A context in which calls of these blocks keep only their inputs, if gradients are on.

    Args:
        blocks: Modules, none of them inside another.
        again: Makes a context for the recomputation, which runs later: it restores temporary changes that were in
            force during the first computation.
    """

    def call(forward: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        # Options in dicts may be changed for the next block before this one is computed again.
        args = tuple(dict(value) if isinstance(value, dict) else value for value in args)
        kwargs = {name: dict(value) if isinstance(value, dict) else value for name, value in kwargs.items()}
        contexts = (nullcontext(), again())
        return checkpoint(forward, *args, use_reentrant=False, context_fn=lambda: contexts, **kwargs)

    return _called_by(blocks, call)


def on_copies(blocks: Iterable[nn.Module]) -> AbstractContextManager[None]:
    """A context in which these blocks, none inside another, leave their inputs unchanged, if gradients are on."""
    return _called_by(blocks, lambda forward, args, kwargs: forward(*args, **kwargs))


@contextmanager
def _called_by(
    blocks: Iterable[nn.Module], call: Callable[[Callable[..., Any], tuple, dict[str, Any]], Any]
) -> Iterator[None]:
    """A context in which blocks are called by ``call(forward, args, kwargs)``, with a forward that works on copies."""
    own = {block: block.__dict__.get("forward") for block in blocks}
    try:
        for block in own:
            block.forward = _replacement(block, call)
        yield
    finally:
        for block, forward in own.items():
            if forward is None:
                block.__dict__.pop("forward", None)
            else:
                block.forward = forward


def _replacement(
    block: nn.Module, call: Callable[[Callable[..., Any], tuple, dict[str, Any]], Any]
) -> Callable[..., Any]:
    forward = block.forward
    norms = [module for module in block.modules() if type(module).__name__.endswith("Norm")]

    def with_copies(*args: Any, **kwargs: Any) -> Any:
        args = tuple(_copy(value) for value in args)
        kwargs = {name: _copy(value) for name, value in kwargs.items()}
        with _inputs_copied(norms):
            return forward(*args, **kwargs)

    def replacement(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return call(with_copies, args, kwargs)

    return replacement


def _copy(value: Any) -> Any:
    """A copy of a tensor of numbers, also of one without gradient: an addition in place would give it one."""
    return value.clone() if isinstance(value, Tensor) and value.is_floating_point() else value


@contextmanager
def _inputs_copied(modules: list[nn.Module]) -> Iterator[None]:
    """A context in which these modules work on copies of their inputs."""
    with ExitStack() as stack:
        for module in modules:
            hook = module.register_forward_pre_hook(lambda module, args: tuple(map(_copy, args)))
            stack.callback(hook.remove)
        yield
