"""The work of ``onrw embed`` on a photo, in three stages that run in parallel or on another machine.

    file content -> decode -> optimise -> encode -> file content and report

All random draws follow from the seed, the key and the photo, so that the result does not depend on where and in which
order photos are marked.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from .. import heap, pipeline
from ..clip import Clip
from ..extractors import NO_LABEL
from ..extractors.base import Extractor
from ..imaging import files as images
from ..imaging.geometry import size_of
from ..imaging.pixels import opaque_area
from ..models import Loaded
from ..payload.keys import Key
from ..payload.message import Message
from ..payload.registry import perceptual_hash
from ..stages.composition import resized
from ..stages.noise_optimisation import Settings
from ..stages.quality import Judgement, Score
from ..stages.robustness import Robustness
from .common import Progress
from .journal import Job

__all__ = ["Marker", "Mask", "Photo", "Result", "Source", "load_mask"]

log = logging.getLogger(__name__)

ASPECT_TOLERANCE = 0.02  # between a mask and its photo


@dataclass(frozen=True)
class Mask:
    """The area of the watermark.

    Attributes:
        path: The file, for error messages.
        values: (1, 1, H, W) in [0, 1].
    """

    path: str
    values: Tensor


@dataclass(frozen=True)
class Source:
    """A photo as it was read from the disk.

    Attributes:
        content: Its file.
        digest: SHA-256 of it.
        message: What it is to be marked with.
    """

    content: bytes
    digest: str
    message: Message


@dataclass
class Photo:
    """A decoded photo with its message and extractor; after the optimisation, with the marked image as well.

    Its pixels take 1.2 GB at 100 megapixels: `Marker.encode` takes the marked image out of it.
    """

    job: Job
    digest: str
    image: images.DecodedImage
    message: Message
    extractor: Extractor
    mask: Tensor | None
    marked: pipeline.Marked | None = None


@dataclass(frozen=True)
class Result:
    """The file of a marked photo, and its report.

    Attributes:
        content: The file.
        digest: SHA-256 of the photo's file.
        message: The embedded message.
        judgement, psnr, ssim, iterations, seconds: See `pipeline.Marked`.
        decoded_quality: SSIMULACRA2 of the pixels in the file, compression included, where it is lossy; None elsewhere.
        found: Whether a watermark was detected in the file.
        readable: Whether the message was read back from it.
        log10_p: log10 of the p-value of that reading.
        wrong: Number of wrong bits; None where no watermark of that length was detected.
        robustness: See `pipeline.Marked`.
        perceptual_hash: See `registry.perceptual_hash`.
        thumbnail: Text of the `Thumbnail` of the marked image; "" where the watermark cannot be read.
    """

    content: bytes
    digest: str
    message: Message
    judgement: Judgement
    decoded_quality: float | None
    psnr: float
    ssim: float
    iterations: int
    seconds: float
    found: bool
    readable: bool
    log10_p: float
    wrong: int | None
    robustness: Robustness | None
    perceptual_hash: str
    thumbnail: str


class Marker:
    """Marks photos.

    Args:
        loaded: The model.
        settings: Settings of the optimisation.
        extractor: The extractor that is to read the watermarks.
        key: The key; None for raw bits and a third-party decoder.
        mask: Area of the watermark; None for the whole image.
        prompt: Description of the photos.
        size: The working size in pixels, see `pipeline.embed`.
        seed: Seed of all random draws.
        write_label: Whether the public label is stated in the metadata of the files as well.
    """

    def __init__(
        self,
        loaded: Loaded,
        settings: Settings,
        *,
        extractor: Extractor,
        key: Key | None,
        mask: Mask | None,
        prompt: str,
        size: int | None,
        seed: int,
        write_label: bool = False,
    ) -> None:
        self.loaded, self.settings, self.size, self.seed = loaded, settings, size, seed
        self.extractor = extractor.to(loaded.device)
        self.key, self.mask, self.write_label = key, mask, write_label
        self.positive, self.null = loaded.encode(prompt), loaded.encode("")

    def decode(self, job: Job, read: Source) -> Photo:
        """Decode a photo and check all of its input, before the optimisation."""
        source, result = job
        image = images.load(source, read.content)
        images.check_holds(result, image)
        if self.write_label and self.settings.label is not None:
            images.labelled(image, self.settings.label, result)  # raises an error before the work starts
        extractor = self.extractor.for_bits(len(read.message.bits))
        mask = opaque_area(None if self.mask is None else _fit(self.mask, image.rgb, source), image.alpha)
        return Photo(job, read.digest, image, read.message, extractor, mask)

    def optimise(self, photo: Photo, progress: Progress | None = None) -> Photo:
        """Embed the watermark."""
        image = photo.image.rgb.to(self.loaded.device)
        source = photo.job[0]
        marked = self._embed(source, image, photo.extractor, photo.message, photo.mask, self._generator(), progress)
        return replace(photo, marked=marked)

    def mark_clip(
        self, frames: Iterable[Tensor], source: Path, message: Message, progress: Progress | None = None
    ) -> Iterator[pipeline.Marked]:
        """Embed a message in the frames of a clip, each (3, H, W) in [0, 1], one by one as they are taken."""
        coming = (frame.to(self.loaded.device) for frame in frames)
        first = next(coming, None)
        if first is None:
            return
        extractor, generator = self.extractor.for_bits(len(message.bits)), self._generator()
        mask = None if self.mask is None else _fit(self.mask, first, source)
        marked = self._embed(source, first, extractor, message, mask, generator, progress)
        yield marked
        model, autoencoder = self.loaded.model, self.loaded.autoencoder
        clip = Clip(first, marked, model, autoencoder, generator=generator, size=self.size, mask=mask)
        for frame in coming:
            yield clip.mark(frame)

    def _embed(
        self,
        source: Path,
        image: Tensor,
        extractor: Extractor,
        message: Message,
        mask: Tensor | None,
        generator: torch.Generator,
        progress: Progress | None,
    ) -> pipeline.Marked:
        return pipeline.embed(
            image,
            self.loaded.model,
            self.loaded.autoencoder,
            extractor,
            message.bits,
            positive=self.positive,
            null=self.null,
            settings=self.settings,
            generator=generator,
            size=self.size,
            mask=mask,
            on_forecast=lambda found: log.warning("%s: little room for a watermark; in a trial %s", source, found),
            on_inversion=None if progress is None else progress.inversion,
            on_state=None if progress is None else progress.optimisation,
        )

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def encode(self, photo: Photo) -> Result:
        """Encode the file and read the watermark back from it, compression included."""
        result, message, marked = photo.job[1], photo.message, photo.marked
        assert marked is not None, "encode comes once, after optimise"
        label = None if marked.label == NO_LABEL else marked.label
        like = images.with_label(photo.image, label, result, write=self.write_label)
        content = images.encode(result, marked.image.cpu(), like)
        photo.marked, marked = None, replace(marked, image=torch.empty(0))  # the pixels are freed
        heap.trim()
        decoded = images.load(result, content)
        written = decoded.rgb
        reading = photo.extractor.read(written, self.key)
        readable = reading.carries(message)
        # Without a detected watermark the bits are a guess, and the number of wrong bits has no meaning.
        match = reading.match(message.bits) if reading.detected or readable else None
        wrong = None if match is None else round((1 - match.bit_accuracy) * len(message.bits))
        return Result(
            content,
            photo.digest,
            message,
            marked.judgement,
            None if decoded.lossless else self._quality(photo, written),
            marked.psnr,
            marked.ssim,
            marked.iterations,
            marked.seconds,
            reading.detected or readable,
            readable,
            reading.log10_p if reading.detected or match is None else match.log10_p,
            wrong,
            marked.robustness,
            perceptual_hash(written),
            str(reading.thumbnail(written) or ""),
        )

    @staticmethod
    def _quality(photo: Photo, written: Tensor) -> float:
        """SSIMULACRA2 of pixels against the photo, in its mask."""
        mask = photo.mask
        if mask is not None:
            mask = resized(mask, size_of(written), "bilinear")
        return Score(photo.image.rgb[None], mask)(written[None])


def load_mask(path: str) -> Mask:
    """Load an image file as a mask: the mean of its channels, and nothing where it is transparent."""
    image = images.load(path)
    mask = image.rgb.mean(0)[None, None]
    if image.alpha is not None:
        mask = mask * image.alpha
    if not mask.any():
        raise ValueError(f"mask {path}: all black or transparent; paint the area of the watermark white")
    return Mask(path, mask)


def _fit(mask: Mask, rgb: Tensor, source: Path) -> Tensor:
    """The mask, resized to the photo: (1, 1, H, W)."""
    (height, width), (h, w) = rgb.shape[-2:], mask.values.shape[-2:]
    if abs(w * height / (h * width) - 1) > ASPECT_TOLERANCE:
        raise ValueError(
            f"{source}: is {width}x{height} and the mask {mask.path} {w}x{h}; give a mask of the same aspect ratio"
        )
    return resized(mask.values, (height, width), "bilinear")  # of thin lines of a larger mask, something is left
