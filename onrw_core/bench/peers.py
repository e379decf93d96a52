"""Other watermarks as systems under test: DwtDct, DwtDctSvd and RivaGAN (`invisible-watermark`), `blind-watermark`.

Each system gets the inputs of its interface. The block methods number their blocks along the rows of the marked image,
so an image of another size is resized to the original size before they read it: they are told the original size, and
ONRW is not. RivaGAN averages over all positions and reads any size; its package refuses images below 256 x 256, and
is given such images repeated, which does not change the average. None of them has a presence statistic; the match with
the known message serves in its place, which favours them. Images that a package refuses count as half of the bits
right.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import math
import multiprocessing
import time
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..imaging.rounding import LEVELS
from .photos import Photo
from .systems import Outcome, System

__all__ = ["PEERS", "BlindWatermark", "InvisibleWatermark", "peers"]

SMALLEST = 256 * 256  # pixels that invisible-watermark asks for
REMEDY = "install the packages of the peers by `pip install 'onrw[bench]'`"


class InvisibleWatermark(System):
    """A method of the package `invisible-watermark`.

    Args:
        method: "dwtDct", "dwtDctSvd" or "rivaGan".
        num_bits: 32 for RivaGAN.
    """

    NAMES = {"dwtDct": "DwtDct", "dwtDctSvd": "DwtDctSvd", "rivaGan": "RivaGAN"}

    def __init__(self, method: str, num_bits: int) -> None:
        try:
            from imwatermark import WatermarkDecoder, WatermarkEncoder

            if method == "rivaGan":
                WatermarkEncoder.loadModel()
        except ImportError as error:
            raise ValueError(f"--peers: {error}; {REMEDY}") from None
        self._encoder, self._decoder = WatermarkEncoder, WatermarkDecoder
        self.method, self.num_bits, self.name = method, num_bits, self.NAMES[method]

    def settings(self) -> dict[str, Any]:
        version = importlib.metadata.version("invisible-watermark")
        return {"system": f"invisible-watermark {version}", "method": self.method, "bits": self.num_bits}

    def mark(self, photo: Photo, bits: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
        encoder = self._encoder()
        encoder.set_watermark("bits", bits.tolist())
        return _as_tensor(encoder.encode(_bgr(photo.image), self.method)), {}

    def read(self, image: Tensor, original_size: tuple[int, int]) -> Outcome:
        image = _repeated(image) if self.method == "rivaGan" else _resized(image, original_size)
        start = time.perf_counter()
        try:
            bits = self._decoder("bits", self.num_bits).decode(_bgr(image), self.method)
        except RuntimeError:
            bits = None
        return Outcome(_vector(bits), seconds=time.perf_counter() - start)


class BlindWatermark(System):
    """The package `blind-watermark`; it is told the number of bits."""

    name = "blind-watermark"

    def __init__(self, num_bits: int) -> None:
        try:
            package = _blind_watermark()
        except ImportError as error:
            raise ValueError(f"--peers: {error}; {REMEDY}") from None
        package.bw_notes.close()
        self._new = package.WaterMark
        self.num_bits = num_bits

    def settings(self) -> dict[str, Any]:
        return {
            "system": f"blind-watermark {importlib.metadata.version('blind-watermark')}",
            "bits": self.num_bits,
        }

    def mark(self, photo: Photo, bits: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
        system = self._new(password_img=1, password_wm=1)
        system.read_img(img=_bgr(photo.image))
        system.read_wm(bits.numpy().astype(bool), mode="bit")
        return _as_tensor(system.embed().round().astype(np.uint8)), {}

    def read(self, image: Tensor, original_size: tuple[int, int]) -> Outcome:
        image = _resized(image, original_size)
        start = time.perf_counter()
        try:
            values = self._new(password_img=1, password_wm=1).extract(
                embed_img=_bgr(image), wm_shape=self.num_bits, mode="bit"
            )
            bits = np.asarray(values) > 0.5
        except (AssertionError, ValueError, np.linalg.LinAlgError):
            bits = None
        return Outcome(_vector(bits), seconds=time.perf_counter() - start)


def _blind_watermark() -> ModuleType:
    """The package. It sets how processes start when it is imported, which fails where that has been set already."""
    set_start_method, multiprocessing.set_start_method = multiprocessing.set_start_method, lambda *_: None
    try:
        return importlib.import_module("blind_watermark")
    finally:
        multiprocessing.set_start_method = set_start_method


PEERS = ("DwtDct", "DwtDctSvd", "RivaGAN", "blind-watermark")


def peers(num_bits: int = 48) -> list[System]:
    """All four systems, in the order of `PEERS`.

    Raises:
        ValueError: If a package is not installed.
    """
    methods = [InvisibleWatermark("dwtDct", num_bits), InvisibleWatermark("dwtDctSvd", num_bits)]
    return [*methods, InvisibleWatermark("rivaGan", 32), BlindWatermark(num_bits)]


def _bgr(image: Tensor) -> np.ndarray:
    levels = (image.clamp(0, 1) * LEVELS).round().to(torch.uint8)
    return np.ascontiguousarray(levels.permute(1, 2, 0).flip(-1).numpy())


def _as_tensor(bgr: np.ndarray) -> Tensor:
    return torch.from_numpy(bgr[..., ::-1].astype(np.float32) / LEVELS).permute(2, 0, 1).contiguous()


def _resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    return F.interpolate(image[None], size=size, mode="bicubic", antialias=True, align_corners=False)[0].clamp(0, 1)


def _repeated(image: Tensor) -> Tensor:
    """The image repeated side by side until it has `SMALLEST` pixels."""
    times = math.ceil(math.sqrt(SMALLEST / image[0].numel()))
    return image.repeat(1, times, times)


def _vector(bits: Any) -> Tensor | None:
    return None if bits is None else torch.from_numpy(np.asarray(bits).astype(np.int64).reshape(-1))
