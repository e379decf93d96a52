"""Several items at a time, results in order.

What is done to a picture is one thread's work: its arrays stay in that core's cache, where a tensor of many pictures
does not fit, and decoding overlaps with reading. PyTorch and Pillow hold no lock while they compute.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

__all__ = ["in_order"]

AHEAD = 2  # items begun or waiting for each thread; what is done is taken before more is begun

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    work: Callable[[Item], Result], items: Iterable[Item], threads: int | None = None
) -> Iterator[tuple[Item, Future[Result]]]:
    """Do `work` for items on threads of their own, each computing with one.

    Args:
        work: Called once for each item.
        items: Taken as they are needed.
        threads: How many; PyTorch's number where it is None.

    Yields:
        Each item and its future, which is done: `result()` returns what `work` did, or raises what it raised.
    """
    before = torch.get_num_threads()
    threads = before if threads is None else threads
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    try:
        torch.set_num_threads(1)
        for item in items:
            waiting.append((item, pool.submit(work, item)))
            if len(waiting) >= AHEAD * threads:
                yield _done(*waiting.popleft())
        while waiting:
            yield _done(*waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)


def _done(item: Item, future: Future[Result]) -> tuple[Item, Future[Result]]:
    future.exception()  # waits
    return item, future
