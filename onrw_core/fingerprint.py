"""Short names for what records belong to: networks and images, hashed.

Records name the model that they were made with, so that an inversion is never replayed with another. Hashing
gigabytes would take seconds, so a few values of every k-th tensor stand for all: fine-tuning moves nearly every weight.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .rounding import LEVELS

__all__ = ["fingerprint", "image_digest"]

TENSORS = 16
VALUES = 256


def fingerprint(state: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> str:
    """Twelve hexadecimal digits that tell one set of weights from another.

    Values are rounded to half precision first, so that the same file loaded as float32 or float16 has one name.

    Args:
        state: Weights by name, as `torch.nn.Module.state_dict` gives them.
        config: Whatever else shapes the network; entries whose name starts with "_" do not count.
    """
    digest = hashlib.sha256()
    public = {key: value for key, value in (config or {}).items() if not key.startswith("_")}
    digest.update(json.dumps(public, sort_keys=True, default=str).encode())
    names = sorted(state)
    for name in names[:: max(1, len(names) // TENSORS)]:
        tensor = state[name].detach()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        values = tensor.flatten()[:: max(1, tensor.numel() // VALUES)][:VALUES]
        digest.update(values.to("cpu", torch.float16).numpy().tobytes())
    return digest.hexdigest()[:12]


def image_digest(image: Tensor) -> str:
    """SHA-256 of size and pixels of an image (3, H, W) in [0, 1], in hexadecimal; what 8 bit cannot tell is alike."""
    levels = (image.detach().cpu().clamp(0, 1) * LEVELS).round().to(torch.uint8)
    return hashlib.sha256(repr(tuple(levels.shape)).encode() + levels.numpy().tobytes()).hexdigest()
