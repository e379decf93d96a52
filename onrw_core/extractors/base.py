"""The extractor interface: a frozen, differentiable reader of k bits from an image of any size."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..arguments import as_whole, is_number, shown
from ..imaging.geometry import Geometry
from ..imaging.pixels import MIN_SIDE, as_rgb, check_tensor
from ..imaging.registration import aligned
from ..payload.keys import Key
from ..payload.message import Decoded, decode
from ..torch_modes import in_own_modes
from . import NO_LABEL
from .reading import Reading, message_log10_p

__all__ = [
    "WINDOW",
    "WORKING_PIXELS",
    "WORKING_SIZE",
    "AlreadyMarkedError",
    "Extractor",
    "ExtractorError",
    "default_working_size",
    "frames_of",
    "log10_rate",
    "working_size",
]

TEMPERATURE = 10.0  # temperature of the message loss, arXiv 2601.17388
BOUND = 0.7  # q of the generalised cross-entropy, between 0 (cross-entropy) and 1 (share of wrong bits)
PULL = 0.1  # weight of the cross-entropy added to it
WINDOW = 160 * 160  # pixels: many receptive fields of a decoder, and a third of a second on one core
WORKING_SIZE = 512  # pixels of the shorter side of the working image, at least
WORKING_PIXELS = 2**22  # of the working image, unless its shorter side would be less than that


def default_working_size(height: int, width: int) -> int:
    """The shorter side at which an image is marked by default, in pixels.

    An image's own size is the best, because a watermark that is enlarged becomes coarser, so more visible: the same
    quality leaves less of it. Working images of more than `WORKING_PIXELS` would take too long.
    """
    shorter, longer = sorted((height, width))
    size = min(shorter, int(math.sqrt(WORKING_PIXELS * shorter / longer)))
    if size * round(size * longer / shorter) > WORKING_PIXELS:  # by the rounding of the longer side
        size -= 1
    return max(WORKING_SIZE, size)


def working_size(size: int | None, height: int, width: int) -> int:
    """The shorter side at which an image is marked, in pixels: `size`, or the default where it is None.

    Raises:
        ValueError: `size` is no whole number of pixels, or too small.
    """
    if size is None:
        return default_working_size(height, width)
    return as_whole("size", size, MIN_SIDE, unit=" of pixels")


class ExtractorError(ValueError):
    """A decoder that is missing, damaged, not allowed, or of another kind than stated."""


class AlreadyMarkedError(ExtractorError):
    """An image that is to be marked carries a watermark of the same key."""


def frames_of(image: Tensor, align: bool = True) -> Tensor:
    """What `Extractor.read` takes as frames, (F, 3, H, W); one image is a single frame.

    Args:
        image: See there.
        align: Bring the content of several frames to one place.

    Raises:
        ValueError: What `as_rgb` refuses.
    """
    check_tensor(image, "image")
    if image.ndim != 4:
        return as_rgb(image)[None]
    frames = as_rgb(image, batch=True)
    return aligned(frames) if align and len(frames) > 1 else frames


def log10_rate(fpr: float) -> float:
    """Base-10 logarithm of a false-positive rate.

    Raises:
        ValueError: `fpr` is not between 0 and 1.
    """
    if not is_number(fpr) or not 0 < fpr < 1:
        raise ValueError(f"fpr: is {shown(fpr)}; a false-positive rate lies between 0 and 1, e.g. 1e-6")
    return math.log10(fpr)


class Extractor(ABC):
    """Reads bits from images.

    The methods defined here are those of third-party decoders, which read an image without a search.

    Attributes:
        name: Short name, e.g. "keyed".
        num_bits: Raw bits of the watermark.
        window: Pixels of the random crop that the optimisation evaluates at once; None for whole images. For networks
            that average over all positions: a crop gives the same bits at less cost.
        device: Device of its networks, as set by `to`.
        public: Public label of the image that is marked with it, see `for_image`; None without a public layer.
        marking: Changes of a preset's `Settings` for this kind of extractor. Here: attacks that such decoders cannot
            undo would dominate the loss, so the mix is "upright"; the decoders use colour; they do not normalise by
            local contrast, so the gradient may determine where the residual is strong; steps on the image are more
            effective than through the model, and cost little less; and their gradients differ much between attacks,
            so each iteration draws more attacks. At the quality of a keyed mark they hold little, so they take a PSNR.
    """

    name: str
    num_bits: int
    window: int | None = None
    public: str | None = None
    device: torch.device = torch.device("cpu")
    marking: Mapping[str, Any] = {
        "target_psnr": 42.0,
        "mix": "upright",
        "luma_only": False,
        "visibility": False,
        "warm_steps": 16,
        "attacks": 6,
    }

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of bits that `for_bits` accepts."""
        return (self.num_bits,)

    def for_bits(self, num_bits: int) -> Extractor:
        """The extractor for watermarks of that many bits.

        Raises:
            ExtractorError: It does not read that many bits.
        """
        if num_bits not in self.sizes:
            known = ", ".join(map(str, self.sizes))
            raise ExtractorError(f"{num_bits} bits: the extractor {self.name!r} reads {known}")
        return self

    def for_image(self, image: Tensor, label: str | None = NO_LABEL, again: bool = False) -> Extractor:
        """The extractor for marking one image; third-party decoders are the same for all.

        Args:
            image: The working image, (1, 3, H, W) in [0, 1].
            label: Public label, one of `keyed.public_layer.LABELS`; None for no public layer. Third-party decoders
                have none.
            again: Accept an image that carries a watermark of the same key.

        Raises:
            AlreadyMarkedError: The image carries a watermark of the same key.
        """
        return self

    def refuse_marked(self, image: Tensor) -> None:  # noqa: B027
        """Look for a watermark of the same key in an image that is marked at another size than its own.

        Args:
            image: (1, 3, H, W) in [0, 1].

        Raises:
            AlreadyMarkedError: The image carries one.
        """

    def for_window(self, top: int, left: int) -> Extractor:
        """The extractor for marking a window of that image, or of the scene around it, which begins at these pixels."""
        return self

    def for_scene(self, image: Tensor) -> Extractor:
        """The extractor for another scene of a clip whose first frame it is for.

        Args:
            image: The first working image of that scene, (1, 3, H, W) in [0, 1].
        """
        return self

    def to(self, device: str | torch.device) -> Extractor:
        """Move its networks, if it has any, to a device; patterns follow the images."""
        self.device = torch.device(device)
        for part in vars(self).values():
            if isinstance(part, nn.Module):
                part.to(device)
        return self

    @abstractmethod
    def logits(self, images: Tensor, geometry: Geometry | None = None) -> Tensor:
        """Soft bits of images whose geometry is known.

        Args:
            images: (B, 3, H, W) in [0, 1], any size.
            geometry: Geometry of the images relative to the marked image; None for unchanged. Third-party decoders
                ignore it.

        Returns:
            (B, num_bits), positive = bit 1, differentiable.
        """

    @in_own_modes
    @torch.no_grad()
    def read(
        self,
        image: Tensor,
        key: Key | None = None,
        *,
        search: bool = True,
        fpr: float = 1e-6,
        size: int | None = None,
        deep: bool = False,
        progress: Callable[[float], None] | None = None,
    ) -> Reading:
        """Detect and read a watermark in one image, or in the frames of one clip, whose evidence is pooled.

        The p-value of a clip is that of one image: it is the chance that another key gives such a reading, whatever the
        frames have in common.

        Args:
            image: (3, H, W) in [0, 1]; or frames (F, 3, H, W), which may show a scene in motion, see `registration`.
            key: Key of the message; None for that of the keyed extractor. Without a key, third-party decoders give
                bits without a message.
            search: Whether to search all rotations and scales if nothing is detected without a search. Third-party
                decoders never search.
            fpr: Largest false-positive rate, over all attempts together.
            size: Working size of the marking: the shorter side in pixels; None for the default of the image's size.
            deep: Last, search rotations of +-10 degrees and scales of .7 to 1.4 by the key alone, for images whose
                public layer is gone; takes minutes.
            progress: Called with the done share of the deep search.

        Raises:
            ValueError: An image that `as_rgb` refuses, or an `fpr` that is not between 0 and 1.
        """
        start, limit = time.perf_counter(), log10_rate(fpr)
        logits = self.logits(frames_of(image, align=False).to(self.device)).mean(0).cpu()
        message = Decoded() if key is None else decode(logits, key)
        log10_p = 0.0
        if message.kind is not None and message.corrected is not None:
            log10_p = message_log10_p(len(logits), message.corrected)
        detected = message.kind is not None and log10_p <= limit
        seconds = time.perf_counter() - start
        return Reading(detected, log10_p, logits, message if detected else Decoded(), seconds)

    def guesses(self, reading: Reading, sizes: Iterable[int]) -> dict[int, Tensor]:
        """Number of bits -> soft bits of a reading; if nothing was detected, the best guess for each of `sizes`."""
        return {reading.num_bits: reading.logits}

    def loss_and_logits(self, images: Tensor, bits: Tensor, geometry: Geometry | None = None) -> tuple[Tensor, Tensor]:
        """Message loss per image, (B,), and the soft bits, (B, num_bits), from one reading.

        The loss is the generalised cross-entropy, (1 - p^q) / q, of the probability p of the correct bit at temperature
        10 (arXiv 2601.17388; arXiv 1805.07836), plus `PULL` times the cross-entropy. The former is bounded, so that
        bits that an attack has destroyed do not dominate the others; the latter keeps a gradient on them, since the
        scale of a third-party decoder's logits is unknown. Extractors may override it.

        Args:
            images: (B, 3, H, W) in [0, 1].
            bits: (num_bits,) of 0/1.
            geometry: See `logits`.
        """
        logits = self.logits(images, geometry)
        right = F.logsigmoid(TEMPERATURE * (2 * bits.to(logits) - 1) * logits)  # logarithm of p
        loss = -torch.expm1(BOUND * right) / BOUND - PULL * right
        return loss.mean(1), logits

    def loss(self, images: Tensor, bits: Tensor, geometry: Geometry | None = None) -> Tensor:
        """Message loss per image, (B,); see `loss_and_logits`."""
        return self.loss_and_logits(images, bits, geometry)[0]
