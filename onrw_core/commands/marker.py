"""What ``onrw embed`` does with one photo, in three stages that run beside each other or on another machine.

    file content -> decode -> optimise -> encode -> file content and report

Everything random follows from the arguments, the key and the photo, so that it does not matter where, when and in which
order photos are marked.
"""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import images, pipeline
from ..detection import match_log10_p
from ..extractors.base import Extractor
from ..extractors.keyed import KeyedExtractor
from ..extractors.plain import MARKING, read_plain
from ..folder import Job
from ..keys import Key
from ..message import ID_BITS, Message, photo_id
from ..optimise import PRESETS
from ..registry import perceptual_hash
from .common import Progress
from .models import Loaded

__all__ = ["Marker", "Photo", "Result", "load_mask"]

ASPECT_TOLERANCE = 0.02  # between a mask and the photo it is for


@dataclass(frozen=True)
class Photo:
    """A decoded photo and what it is to be marked with; after the optimisation, the marked one as well."""

    job: Job
    digest: str
    picture: images.Picture
    message: Message
    extractor: Extractor
    mask: Tensor | None
    marked: pipeline.Marked | None = None


@dataclass(frozen=True)
class Result:
    """A marked photo's file and what is to be said of it.

    Attributes:
        content: The file.
        digest: SHA-256 of the photo's file.
        message: What it was marked with.
        psnr, ssim, iterations, seconds: See `pipeline.Marked`.
        found, log10_p, wrong: Whether the mark was read back from the file, how sure, and with how many wrong bits.
        perceptual_hash: See `registry.perceptual_hash`.
    """

    content: bytes
    digest: str
    message: Message
    psnr: float
    ssim: float
    iterations: int
    seconds: float
    found: bool
    log10_p: float
    wrong: int
    perceptual_hash: str


class Marker:
    """Marks photos.

    Args:
        arguments: Of the command.
        loaded: The model.
        decoder: Another's; None for the keyed extractor.
        key: May be missing where another's decoder takes raw bits.
        message: For all photos; None for an id of its own for each.
        mask: (1, 1, H, W) in [0, 1]: where the mark may lie.
    """

    def __init__(
        self,
        arguments: argparse.Namespace,
        loaded: Loaded,
        decoder: Extractor | None,
        key: Key | None,
        message: Message | None,
        mask: Tensor | None,
    ) -> None:
        self.arguments, self.loaded = arguments, loaded
        self.decoder = None if decoder is None else decoder.to(loaded.device)
        self.key, self.message, self.mask = key, message, mask
        self.settings = (
            PRESETS[arguments.preset]
            .with_(**({} if decoder is None else MARKING))
            .with_(target_psnr=arguments.target_psnr, iterations=arguments.iterations, mix=arguments.mix)
        )
        self.positive, self.null = loaded.encode(arguments.prompt), loaded.encode("")

    def decode(self, job: Job, content: bytes) -> Photo:
        """Look at everything that can be wrong with a photo before the work."""
        source, result = job
        picture = images.load(source, content)
        images.check_alpha(result, picture)
        digest = hashlib.sha256(content).hexdigest()
        message, bits = self.message, ID_BITS if self.decoder is None else self.decoder.num_bits
        if message is None:
            message = photo_id(self.key, f"{self.arguments.seed} {digest}", bits)
        extractor = self.decoder or KeyedExtractor(self.key, len(message.bits))
        mask = None if self.mask is None else _fit(self.mask, picture.rgb, self.arguments.mask, source)
        return Photo(job, digest, picture, message, extractor, mask)

    def optimise(self, photo: Photo, progress: Progress | None = None) -> Photo:
        """The work."""
        marked = pipeline.embed(
            photo.picture.rgb.to(self.loaded.device),
            self.loaded.model,
            self.loaded.autoencoder,
            photo.extractor,
            photo.message.bits,
            positive=self.positive,
            null=self.null,
            settings=self.settings,
            generator=torch.Generator().manual_seed(self.arguments.seed),
            size=self.arguments.size,
            mask=photo.mask,
            on_inversion=progress and progress.inversion,
            on_state=progress and progress.optimisation,
        )
        return Photo(photo.job, photo.digest, photo.picture, photo.message, photo.extractor, None, marked)

    def encode(self, photo: Photo) -> Result:
        """The file, which is read back: what it holds is what counts, compression included."""
        result, message, marked = photo.job[1], photo.message, photo.marked
        content = images.encode(result, marked.image.cpu(), photo.picture)
        written = images.load(result, content).rgb
        if self.decoder is None:
            reading = photo.extractor.read(written)
        else:
            reading = read_plain(self.decoder, written.to(self.loaded.device), self.key)
        same_size = len(reading.bits) == len(message.bits)
        wrong = int((reading.bits != message.bits).sum()) if same_size else len(message.bits)
        # Others' decoders have no sync pattern: what counts there is that the bits are right.
        found = reading.detected if self.decoder is None else not wrong
        log10_p = reading.log10_p if self.decoder is None else match_log10_p(reading.bits, message.bits)
        return Result(
            content,
            photo.digest,
            message,
            marked.psnr,
            marked.ssim,
            marked.iterations,
            marked.seconds,
            found,
            log10_p,
            wrong,
            perceptual_hash(written),
        )


def load_mask(path: str) -> Tensor:
    """A picture's luminance as a mask, (1, 1, H, W)."""
    mask = images.load(path).rgb.mean(0)[None, None]
    if not mask.any():
        raise ValueError(f"mask {path}: all black; paint it white where the mark may lie")
    return mask


def _fit(mask: Tensor, rgb: Tensor, mask_path: str, source: Path) -> Tensor:
    """The mask at the photo's size."""
    (height, width), (h, w) = rgb.shape[-2:], mask.shape[-2:]
    if abs(w * height / (h * width) - 1) > ASPECT_TOLERANCE:
        raise ValueError(
            f"{source}: is {width}x{height} and the mask {mask_path} {w}x{h}; give a mask of the same shape"
        )
    return F.interpolate(mask, size=(height, width), mode="bilinear", align_corners=False)
