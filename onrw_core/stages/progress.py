"""Generators that yield their progress and return their result (PEP 380)."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from typing import TypeVar

__all__ = ["result_of"]

State = TypeVar("State")
Result = TypeVar("Result")


def result_of(states: Generator[State, None, Result], on_state: Callable[[State], object] | None = None) -> Result:
    """Run a generator to its end.

    Args:
        states: A generator of `invert`, `replay` or `optimise`.
        on_state: Called with every yielded state; an exception in it stops the generator.

    Returns:
        The generator's return value.
    """
    with closing(states):
        while True:
            try:
                state = next(states)
            except StopIteration as end:
                return end.value
            if on_state is not None:
                on_state(state)
