"""The modes of torch under which the library computes, whatever modes its caller has on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

__all__ = ["in_own_modes", "own_modes"]

P = ParamSpec("P")
T = TypeVar("T")


@contextmanager
def own_modes() -> Iterator[None]:
    """A context with gradients, full precision, and float32 on the CPU as the defaults of new tensors.

    Reading as well: tensors that are cached under `inference_mode` cannot be differentiated later. The default type is
    that of the whole process; it is changed only where it is another than float32.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast("cpu", enabled=False))
        if torch.cuda.is_available():
            stack.enter_context(torch.autocast("cuda", enabled=False))
        if torch.get_default_device().type != "cpu":  # such a context slows every call
            stack.enter_context(torch.device("cpu"))
        before = torch.get_default_dtype()
        if before is not torch.float32:
            stack.callback(torch.set_default_dtype, before)
            torch.set_default_dtype(torch.float32)
        yield


def in_own_modes(function: Callable[P, T]) -> Callable[P, T]:
    """The function, called under `own_modes`."""

    @wraps(function)
    def run(*arguments: P.args, **options: P.kwargs) -> T:
        with own_modes():
            return function(*arguments, **options)

    return run
