"""Fingerprints (hashes) of networks and of images.

An inversion record names its model, so that it is never used with another model. Hashing gigabytes would take seconds,
so only a few values of every k-th tensor are hashed: fine-tuning changes nearly every weight.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..imaging.rounding import to_8bit

__all__ = ["fingerprint", "image_digest"]

TENSORS = 16
VALUES = 256


def fingerprint(state: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> str:
    """Twelve hexadecimal digits that identify a set of weights.

    Values are rounded to half precision first, so that a file loaded as float32 or as float16 has the same fingerprint.

    Args:
        state: Weights by name, as `torch.nn.Module.state_dict` gives them.
        config: The network's configuration; entries whose name starts with "_" are left out.
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
    """SHA-256 of size and pixels of an image (3, H, W) in [0, 1], in hexadecimal, after rounding to 8 bit."""
    levels = to_8bit(image.cpu())
    return hashlib.sha256(repr(tuple(levels.shape)).encode() + levels.numpy().tobytes()).hexdigest()
