"""Thread pools whose threads each compute with one OpenMP thread.

Each thread that runs PyTorch operations gets its own OpenMP team, which lasts as long as the thread. With more threads
in all teams than cores, OpenMP's workers sleep instead of spinning, and the main team is slow to start at every
operation. So every thread but the main thread computes with one OpenMP thread.

Several images at a time: each image is processed by one thread. Its arrays stay in the cache of one core, which a
batch of many images does not fit, and decoding overlaps with reading. PyTorch and Pillow release the interpreter's lock
while they compute.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

__all__ = ["in_order", "side_thread"]

AHEAD = 2  # items started or waiting for each thread; results are yielded before more items are started

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_thread() -> ThreadPoolExecutor:
    """A pool of one thread that computes with one OpenMP thread; the main thread keeps its number."""
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(1)
    pool.submit(_one_thread).result()
    torch.set_num_threads(before)  # threads started later, and MKL, take the number of the process
    return pool


def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()  # at its first operation a thread fixes its number


def in_order(
    work: Callable[[Item], Result], items: Iterable[Item], threads: int | None = None
) -> Iterator[tuple[Item, Future[Result]]]:
    """Map `work` over items in a pool of threads, in order.

    Args:
        work: Called once for each item.
        items: Consumed as needed.
        threads: Number of threads; None for PyTorch's number.

    Yields:
        Each item and its completed future.
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
