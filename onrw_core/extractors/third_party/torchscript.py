"""TorchScript decoders: any module (B, 3, H, W) -> (B, k) as an extractor.

A TorchScript file contains a program, not only weights, and an untrusted file can run any TorchScript operation. So it
is loaded only if the caller allows it, and its output is checked on two test images before it is used.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ...imaging.geometry import Geometry
from ..base import Extractor, ExtractorError
from .hidden import MEAN, STD

__all__ = ["INPUTS", "TorchScriptExtractor", "load_torchscript"]

INPUTS = ("unit", "imagenet", "symmetric")  # values in [0, 1], ImageNet-normalised, or in [-1, 1]
PROBE = 256  # side of the test images, pixels


def load_torchscript(path: str | Path, allow: bool) -> torch.jit.ScriptModule:
    """Load a TorchScript file.

    Args:
        path: The file.
        allow: Whether the user chose to run the program in it.

    Raises:
        ExtractorError: If TorchScript is not allowed, or the file is not a TorchScript file.
    """
    path = Path(path)
    if not allow:
        raise ExtractorError(
            f"{path.name} is TorchScript, which contains code: allow it explicitly if you trust its source, "
            "or convert its weights to safetensors"
        )
    try:
        return torch.jit.load(str(path), map_location="cpu").eval()
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()
        raise ExtractorError(f"{path}: not a TorchScript file ({reason[0] if reason else 'unreadable'})") from None


class TorchScriptExtractor(Extractor):
    """A TorchScript decoder.

    Args:
        module: (B, 3, H, W) -> (B, k), positive = bit 1.
        name: Short name.
        values: Range of the pixel values that the module takes, one of `INPUTS`.
        size: Side in pixels to which images are resized, for modules that take a single size; None for no resizing.

    Raises:
        ExtractorError: If the module does not return (2, k) for two test images.
    """

    def __init__(
        self,
        module: torch.jit.ScriptModule,
        name: str = "torchscript",
        values: str = "unit",
        size: int | None = None,
    ) -> None:
        if values not in INPUTS:
            raise ExtractorError(f"values is {values!r}; choose from {', '.join(INPUTS)}")
        self.name, self._module, self._values, self._size = name, module, values, size
        for parameter in module.parameters():
            parameter.requires_grad_(False)
        with torch.no_grad():
            result = self.logits(torch.full((2, 3, PROBE, PROBE), 0.5))
        if not isinstance(result, Tensor) or result.ndim != 2 or len(result) != 2 or not result.shape[1]:
            shape = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
            raise ExtractorError(
                f"the TorchScript module {name!r} gives {shape} for two images; a decoder gives (2, bits)"
            )
        self.num_bits = result.shape[1]

    def logits(self, images: Tensor, geometry: Geometry | None = None) -> Tensor:
        self._module.to(images.device)
        height, width = images.shape[-2:]
        if self._size is not None:
            size = (self._size, self._size)
            images = F.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)
        if self._values == "imagenet":
            mean, std = (images.new_tensor(values)[:, None, None] for values in (MEAN, STD))
            images = (images - mean) / std
        elif self._values == "symmetric":
            images = images * 2 - 1
        try:
            return self._module(images)
        except RuntimeError as error:
            last = str(error).strip().splitlines()[-1]
            raise ExtractorError(
                f"the TorchScript module {self.name!r} fails on an image of {width} x {height} pixels ({last}); "
                "if the module takes a single size, give that size"
            ) from None
