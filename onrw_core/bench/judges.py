"""Visibility of a watermark by metrics that the optimisation does not use, and by SSIMULACRA2, which it uses.

- SSIMULACRA2 of this library, and the reference if the package `ssimulacra2` is installed: 100 equal, 90 visually
  lossless.
- Butteraugli, where `butteraugli_main` is installed (Debian: `libjxl-devtools`): its "3-norm" over the image and its
  worst place; below 1 the change is invisible.
- FLIP (Andersson et al. 2020), where the package `flip-evaluator` is installed: mean of [0, 1] at 67 pixels a degree.
- The worst place by the map of visible error of this library, in butteraugli's units; the greatest change of a value in
  levels of 255; PSNR.
"""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ..imaging.metrics import psnr
from ..imaging.rounding import LEVELS
from ..imaging.ssimulacra2 import ssimulacra2
from ..stages.quality import Judge

__all__ = ["judged", "judges", "pixels"]

BUTTERAUGLI = "butteraugli_main"
PACKAGES = ("ssimulacra2", "flip-evaluator")

Record = dict[str, Any]


def judges() -> dict[str, str]:
    """The installed metrics of other packages, and their versions."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if shutil.which(BUTTERAUGLI):
        found[BUTTERAUGLI] = "installed"  # it does not tell its version
    return found


def judged(marked: Tensor, original: Tensor) -> Record:
    """The scores of all metrics; None for those that are not installed.

    Args:
        marked: (3, H, W), multiples of 1/255.
        original: The same without the watermark.

    Returns:
        ssimulacra2, ssimulacra2_reference, butteraugli, butteraugli_worst, flip, worst, worst_at (row, column), peak
        and psnr.
    """
    pair = marked[None], original[None]
    error = Judge(original[None]).error(marked[None])[0, 0]  # of half the size
    record = {
        "ssimulacra2": ssimulacra2(*pair).item(),
        "worst": error.max().item(),
        "worst_at": [2 * int(i) for i in divmod(int(error.argmax()), error.shape[1])],
        "peak": round((marked - original).abs().max().item() * LEVELS),
        "psnr": psnr(*pair),
        "flip": _flip(marked, original),
    }
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder, name)) for name in ("original.png", "marked.png")]
        for path, image in zip(paths, (original, marked), strict=True):
            Image.fromarray(pixels(image)).save(path)
        worst, norm = _butteraugli(*paths)
        return record | {
            "ssimulacra2_reference": _reference(*paths),
            "butteraugli": norm,
            "butteraugli_worst": worst,
        }


def pixels(image: Tensor) -> np.ndarray:
    """(3, H, W) in [0, 1] -> (H, W, 3) of 8 bit."""
    return (image * LEVELS).round().byte().permute(1, 2, 0).numpy()


def _reference(original: str, marked: str) -> float | None:
    try:
        from ssimulacra2 import compute_ssimulacra2
    except ImportError:
        return None
    return float(compute_ssimulacra2(original, marked))


def _butteraugli(original: str, marked: str) -> tuple[float, float] | tuple[None, None]:
    """Worst place and 3-norm."""
    if not shutil.which(BUTTERAUGLI):
        return None, None
    output = subprocess.run([BUTTERAUGLI, original, marked], capture_output=True, text=True, check=True).stdout
    found = re.search(r"([\d.]+)\s+3-norm: ([\d.]+)", output)
    if found is None:
        raise ValueError(
            f"{BUTTERAUGLI} printed {output!r} instead of a distance and its 3-norm; install libjxl 0.7 or later"
        )
    return float(found[1]), float(found[2])


def _flip(marked: Tensor, original: Tensor) -> float | None:
    try:
        import flip_evaluator
    except ImportError:
        return None
    pair = (np.ascontiguousarray(image.permute(1, 2, 0).numpy()) for image in (original, marked))
    return float(flip_evaluator.evaluate(*pair, "LDR", applyMagma=False)[1])
