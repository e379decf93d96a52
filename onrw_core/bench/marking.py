"""Marking of a photo for a benchmark, once, with its quality and time."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from ..imaging.metrics import flattest_window_psnr, psnr, ssim
from ..payload.keys import Key
from ..payload.message import SIZES, bit_string, random_id, raw
from ..stages.quality import Judge
from .cache import Cache, generator_for
from .photos import Photo
from .systems import System

__all__ = ["marked"]


def marked(
    system: System,
    cache: Cache,
    photo: Photo,
    key: Key,
    seed: int,
    purpose: str = "message",
    shared: bool = False,
) -> tuple[Tensor, dict[str, Any]]:
    """The marked image (3, H, W) and its record, from the cache or newly marked.

    Args:
        system: The watermarking system.
        cache: The cache of that system.
        photo: The photo to mark.
        key: The key of the message schema.
        seed: The seed of the benchmark.
        purpose: Other purposes draw other messages.
        shared: Draw the same message for every photo.
    """
    found = cache.mark(photo)
    if found is not None and "ssimulacra2" in found[1]:  # not in notes of earlier versions
        return found
    generator = generator_for(seed, "" if shared else photo.name, purpose)
    if system.num_bits in SIZES:
        message = random_id(key, generator, system.num_bits)
    else:
        message = raw(torch.randint(2, (system.num_bits,), generator=generator))
    start = time.perf_counter()
    image, facts = system.mark(photo, message.bits, generator_for(seed, photo.name, "marking"))
    seconds = time.perf_counter() - start
    result, original = image[None], photo.image[None]
    judgement = Judge(original)(result)
    note = {
        "photo": photo.name,
        "photo_digest": photo.digest,
        "mark": Photo("", image).digest[:16],
        "bits": bit_string(message.bits),
        "id": message.value if message.kind == "id" else "",
        "ssimulacra2": judgement.quality,
        "worst": judgement.worst,
        "psnr": psnr(result, original),
        "ssim": float(ssim(result, original)),
        "psnr_flat": flattest_window_psnr(result, original),
        "seconds": round(seconds, 3),
        **facts,
    }
    cache.keep_mark(photo, image, note)
    return image, note
