"""The systems of a benchmark: each marks a photo with bits and reads bits from an image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from ..extractors.base import Extractor
from ..imaging.rounding import round_8bit
from ..imaging.ssimulacra2 import Ssimulacra2
from ..mini import Mini
from ..pipeline import embed
from ..stages.limits import limits
from ..stages.noise_optimisation import Settings
from .photos import Photo

__all__ = ["AtQuality", "Onrw", "Outcome", "System"]

HALVINGS = 12  # of the range of scales
GREATEST = 16.0  # scale of a peer's residual


@dataclass(frozen=True)
class Outcome:
    """The reading of one image by a system.

    Attributes:
        bits: (k,) of 0/1; None where the system gave up.
        logits: (k,) soft bits, where the system has them.
        log10_presence: Its presence p-value, where it has one.
        seconds: Time the reading took.
    """

    bits: Tensor | None
    logits: Tensor | None = None
    log10_presence: float | None = None
    seconds: float = 0.0


class System(ABC):
    """A watermarking system under test.

    Attributes:
        name: Its name in tables, unique in a run.
        num_bits: Bits it carries.
    """

    name: str
    num_bits: int

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """All that its marks and readings depend on, as JSON values; marks and readings are cached under its hash."""

    @abstractmethod
    def mark(self, photo: Photo, bits: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
        """The marked image (3, H, W) in multiples of 1/255, and further facts to note."""

    @abstractmethod
    def read(self, image: Tensor, original_size: tuple[int, int]) -> Outcome:
        """Read (3, H, W). `original_size` (height, width) is for systems that cannot do without."""


@dataclass
class Onrw(System):
    """This library.

    Attributes:
        name: See `System`.
        extractor: The reader.
        settings_: Of the optimisation.
        mini: The embedded model.
        size: Working size in pixels; None for the photo's own.
        fingerprint: Of the key, for the cache.
        device: Where models run.
        like: A peer whose PSNR is the target, photo by photo; None for the settings' own.
        psnr_of: (peer, photo) -> the PSNR of the peer's mark.
    """

    name: str
    extractor: Extractor
    settings_: Settings
    mini: Mini
    size: int | None = None
    fingerprint: str = ""
    device: str = "cpu"
    like: System | None = None
    psnr_of: Callable[[System, Photo], float] | None = None
    num_bits: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_bits = self.extractor.num_bits

    def settings(self) -> dict[str, Any]:
        quality = self.settings_.quality
        return {
            "system": "onrw",
            "version": __version__,
            "extractor": self.extractor.name,
            "bits": self.num_bits,
            "key": self.fingerprint,
            "model": f"{self.mini.model.name} {self.mini.autoencoder.name}",
            "size": self.size,
            "settings": asdict(self.settings_),
            "limits": None if quality is None else asdict(limits(quality)),
        } | ({} if self.like is None else {"psnr_of": self.like.settings()})

    def mark(self, photo: Photo, bits: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
        settings = self.settings_
        if self.like is not None:
            settings = settings.with_(target_psnr=self.psnr_of(self.like, photo))
        marked = embed(
            photo.image.to(self.device),
            self.mini.model,
            self.mini.autoencoder,
            self.extractor,
            bits,
            positive=self.mini.encode(photo.prompt),
            null=self.mini.encode(""),
            settings=settings,
            generator=generator,
            size=self.size or min(photo.image.shape[-2:]),
        )
        return marked.image.cpu(), {"iterations": marked.iterations}

    def read(self, image: Tensor, original_size: tuple[int, int]) -> Outcome:
        reading = self.extractor.read(image)
        # Without a sync pattern presence is the message's, which is judged apart.
        presence = None if reading.geometry is None else reading.log10_p
        return Outcome(reading.bits, reading.logits, presence, reading.seconds)


@dataclass
class AtQuality(System):
    """Another system, whose residual is scaled to a SSIMULACRA2 image by image; to that score alone, unlike ours.

    Attributes:
        peer: The system.
        quality: SSIMULACRA2 of its marks at least, as near as `HALVINGS` of the scale come.
    """

    peer: System
    quality: float
    name: str = field(init=False)
    num_bits: int = field(init=False)

    def __post_init__(self) -> None:
        self.name, self.num_bits = f"{self.peer.name} quality {self.quality:g}", self.peer.num_bits

    def settings(self) -> dict[str, Any]:
        return {"quality": self.quality, "peer": self.peer.settings()}

    def mark(self, photo: Photo, bits: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
        marked, note = self.peer.mark(photo, bits, generator)
        judge, residual = Ssimulacra2(photo.image[None]), marked - photo.image
        low, high = 0.0, GREATEST
        for _ in range(HALVINGS):
            scale = (low + high) / 2
            good = judge(round_8bit(photo.image + scale * residual)[None]).item() >= self.quality
            low, high = (scale, high) if good else (low, scale)
        return round_8bit(photo.image + low * residual), {**note, "scale": low}

    def read(self, image: Tensor, original_size: tuple[int, int]) -> Outcome:
        return self.peer.read(image, original_size)
