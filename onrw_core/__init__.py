"""ONRW: invisible, robust image watermarking by optimising diffusion inversion noise (arXiv 2601.17388).

`detect`, `embed`, `extract`, `Key`, `LABELS` and `PRESETS` are those of `onrw_core.api`, imported on first use, so that
importing the package does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import LABELS, PRESETS, Key, MarkedImage, detect, embed, extract

__all__ = ["LABELS", "PRESETS", "Key", "MarkedImage", "__version__", "detect", "embed", "extract"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in __all__:
        from .torch_modes import own_modes  # imports torch

        with own_modes():  # tables are made when a module is imported
            return getattr(importlib.import_module(f"{__name__}.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
