"""CPU time of the embedded model: the calls of marking and reading."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from ..diffusion.ode import euler, schedule
from ..mini.adapter import Mini, load_mini

__all__ = ["timings"]

REPEATS = 5
STEPS = 20
LATENT_SIDES = (32, 64)  # of 256 and 512 px


def fastest(call: Callable[[], object], clock: Callable[[], float]) -> float:
    """Seconds of the fastest of a few calls, after one that does not count."""
    call()
    seconds = []
    for _ in range(REPEATS):
        start = clock()
        call()
        seconds.append(clock() - start)
    return min(seconds)


def timings(mini: Mini, weights: Path | None = None, threads: int = 2) -> dict[str, dict[str, float]]:
    """Seconds of each call, the fastest of a few.

    Args:
        mini: The model, on the CPU.
        weights: The folder it was loaded from (None: the package's).
        threads: Of the first column.

    Returns:
        For each call ``wall`` (seconds passed, with `threads`) and ``cpu`` (seconds of processor time, with one thread,
        which other processes do not lengthen).
    """
    channels = mini.autoencoder.channels
    generator = torch.Generator().manual_seed(0)
    small, large = (torch.randn(1, channels, side, side, generator=generator) for side in LATENT_SIDES)
    prompt = mini.encode("a photo")
    sigmas = schedule(mini.model.sigmas, STEPS)

    @torch.no_grad()
    def unet_call() -> None:
        mini.model.denoise(small, sigmas[0], [prompt])

    @torch.no_grad()
    def decode() -> None:
        mini.autoencoder.decode(small)

    def last_step() -> None:
        x = large.clone().requires_grad_()
        (x0,), _ = mini.model.denoise(x, sigmas[-2], [prompt])
        mini.autoencoder.decode(euler(x, x0, sigmas[-2], sigmas[-1])).square().mean().backward()

    calls = {
        "UNet call, 256 px": unet_call,
        "decoding, 256 px": decode,
        "last step and decoding, forward and backward, 512 px": last_step,
        "loading": lambda: load_mini(weights=weights),
    }
    before, out = torch.get_num_threads(), {}
    try:
        for name, call in calls.items():
            torch.set_num_threads(threads)
            wall = fastest(call, time.perf_counter)
            torch.set_num_threads(1)
            out[name] = {"wall": wall, "cpu": fastest(call, time.process_time)}
    finally:
        torch.set_num_threads(before)
    return out
