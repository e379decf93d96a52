"""Peak memory of a piece of work."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

__all__ = ["Peak", "peak_memory"]

STATUS = Path("/proc/self/statm")
PERIOD = 0.01  # seconds between samples


class Peak:
    """Peak memory of a block, known when the block has ended.

    Attributes:
        megabytes: Largest use above what was in use at the start; None where it cannot be measured.
    """

    megabytes: float | None = None


@contextmanager
def peak_memory(device: str = "cpu") -> Iterator[Peak]:
    """Measure the block: on CUDA what is allocated there, on Linux the resident memory of the process.

    What the caller holds already, models included, does not count on the CPU, and does on CUDA.
    """
    peak = Peak()
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        yield peak
        torch.cuda.synchronize()
        peak.megabytes = torch.cuda.max_memory_allocated() / 2**20
        return
    if not STATUS.is_file():
        yield peak
        return
    before, stop = _resident(), threading.Event()
    largest = [before]

    def watch() -> None:
        while not stop.wait(PERIOD):
            largest[0] = max(largest[0], _resident())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()
        peak.megabytes = max(largest[0], _resident()) - before


def _resident() -> float:
    import resource

    return int(STATUS.read_text().split()[1]) * resource.getpagesize() / 2**20
