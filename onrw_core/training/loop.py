"""Shared parts of the training loops: budget, per-step randomness, log, learning-rate decay and atomic checkpoints."""

from __future__ import annotations

import json
import math
import os
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

__all__ = ["Budget", "TrainingLog", "cosine", "descend", "save_atomic", "step_generator", "step_rng"]


class Budget:
    """Length of a training: a number of steps (reproducible) or of minutes (counted over all resumptions).

    Args:
        steps: total optimiser steps, or None.
        minutes: total minutes, or None. One of the two is needed; the first that is spent ends the training.
        stop_file: training ends cleanly, with a checkpoint, as soon as this file exists.
    """

    def __init__(self, steps: int | None, minutes: float | None, stop_file: Path | None = None) -> None:
        if not steps and not minutes:
            raise ValueError("no training budget; give steps or minutes")
        self.steps, self.minutes, self.stop_file = steps, minutes, stop_file
        self._before, self._start = 0.0, time.monotonic()

    def resume(self, seconds: float) -> None:
        """Count ``seconds`` spent by earlier runs."""
        self._before, self._start = seconds, time.monotonic()

    def seconds(self) -> float:
        return self._before + time.monotonic() - self._start

    def progress(self, step: int) -> float:
        """Spent part of the budget, 0..1."""
        parts = [step / self.steps] if self.steps else []
        if self.minutes:
            parts.append(self.seconds() / (60 * self.minutes))
        return min(1.0, max(parts))

    def spent(self, step: int) -> bool:
        return self.progress(step) >= 1.0 or (self.stop_file is not None and self.stop_file.exists())

    def bar(self, name: str, step: int) -> tqdm:
        return tqdm(total=self.steps, initial=step, desc=name, unit="step", mininterval=5.0)

    def tick(self, bar: tqdm, step: int, journal: TrainingLog) -> None:
        bar.update(1)
        if step % 50 == 0:
            bar.set_postfix({key: f"{journal.mean(key):.4f}" for key in journal.keys()}, refresh=False)


class TrainingLog:
    """JSON lines of metrics; values collected since the last line are averaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._values: dict[str, list[Tensor | float]] = defaultdict(list)

    def collect(self, **values: Tensor | float) -> None:
        for key, value in values.items():
            self._values[key].append(value)

    def keys(self) -> list[str]:
        return list(self._values)

    def mean(self, key: str) -> float:
        values = self._values.get(key, [])
        return sum(float(value) for value in values) / len(values) if values else math.nan

    def write(self, **values: float) -> None:
        """Append one line; the collected values start afresh."""
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({key: round(float(value), 6) for key, value in values.items()}) + "\n")
        self._values.clear()


def descend(optimiser: torch.optim.Optimizer, loss: Tensor, rate: float, limit: float) -> None:
    """One step down the gradient of `loss`, with this learning rate, the gradient's norm clipped to `limit`."""
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_([parameter for group in optimiser.param_groups for parameter in group["params"]], limit)
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.step()


def cosine(progress: float) -> float:
    """Half a cosine from 1 to 0."""
    return 0.5 + 0.5 * math.cos(math.pi * min(1.0, max(0.0, progress)))


def step_rng(seed: int, step: int) -> np.random.Generator:
    """Generator of step ``step`` alone (negative steps serve the set-up)."""
    return np.random.default_rng([seed, step + 1_000_000])


def step_generator(seed: int, step: int) -> torch.Generator:
    """CPU torch generator of step ``step`` alone."""
    return torch.Generator().manual_seed(int(step_rng(seed, step).integers(2**62)))


def save_atomic(path: Path, state: dict[str, Any]) -> None:
    """torch.save that never leaves a half-written file."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)
