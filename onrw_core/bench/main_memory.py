"""`onrw bench memory --measure`: the main memory that ``onrw embed`` takes for images of given sizes.

Each image, a synthetic one, is marked on the CPU by the embedded model in a process of its own; what counts is the
largest resident memory of that process, from its start to the watermark that was read back from the file.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

from ..extractors.base import working_size
from ..payload.keys import ENVIRONMENT, Key

__all__ = ["measured"]

GRAIN = 12  # standard deviation of the texture, of 255 levels
CELLS = 24  # patches of colour along the shorter side


def measured(width: int, height: int, size: int | None, iterations: int) -> dict[str, Any]:
    """Mark one image and measure it.

    Args:
        width, height: Of the image, pixels.
        size: The working size, pixels; None for the default.
        iterations: Of the optimisation, in each window.

    Returns:
        "width", "height", "size", "iterations", "gigabytes" (10^9 bytes) and "cpu_seconds".

    Raises:
        OSError: The command failed, or there is no such measurement on this system.
    """
    if not hasattr(os, "wait4"):
        raise OSError("--measure: this system does not tell the memory of a process; use Linux")
    with tempfile.TemporaryDirectory() as folder:
        photo, marked = Path(folder) / "photo.png", Path(folder) / "marked.png"
        _image(width, height).save(photo, compress_level=1)
        words = ["embed", str(photo), "-o", str(marked), "--iterations", str(iterations)]
        words += ["--size", str(size)] if size else []
        command = [sys.executable, "-m", "onrw_core", *words]
        environment = os.environ | {ENVIRONMENT: Key.new().text()}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if not marked.exists():
            raise OSError(f"onrw embed of {width}x{height} ended with {process.returncode}; its message is above")
    return {
        "width": width,
        "height": height,
        "size": working_size(size, height, width),
        "iterations": iterations,
        "gigabytes": usage.ru_maxrss * 1024 / 1e9,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
    }


def _image(width: int, height: int) -> Image.Image:
    """Patches of colour under a texture."""
    cells = max(2, CELLS * width // min(width, height)), max(2, CELLS * height // min(width, height))
    coarse = Image.merge("RGB", [Image.effect_noise(cells, 60) for _ in range(3)])
    texture = Image.effect_noise((width, height), GRAIN).convert("RGB")
    return ImageChops.add(coarse.resize((width, height), Image.Resampling.BICUBIC), texture, offset=-128)
