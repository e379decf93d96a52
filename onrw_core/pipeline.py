"""Marking from one end to the other: invert, optimise, denoise, compose.

Reading is the extractor's own affair (`KeyedExtractor.read`): it needs the picture alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .compose import Composition, compose
from .constrained import Constraint, OriginalBranch, marked_branch, original_branch
from .extractors.base import Extractor
from .fingerprint import image_digest
from .inversion import InversionState, invert
from .metrics import ssim
from .model import Autoencoder, Conditioning, DiffusionModel
from .optimise import Settings, State, Watermark, combined_mask, optimise

__all__ = ["Marked", "Rendered", "embed", "render", "working_image"]

WORKING_SIZE = 512
MULTIPLE = 64  # of the padded working sides: UNets halve latents of 1/8 up to three times
MOST_WORKING_PIXELS = 2**25  # a strip 64 pixels high would grow to gigapixels


@dataclass(frozen=True)
class Rendered:
    """A watermark drawn onto the original.

    Attributes:
        composition: The marked picture at the original's resolution and its figures.
        latent: The marked clean latent.
        decoded: The marked latent's picture, (1, 3, h, w), not clamped.
        decoded_original: The unmarked replay's picture.
        mask: Where the change was allowed, (1, 1, h, w), or None.
    """

    composition: Composition
    latent: Tensor
    decoded: Tensor
    decoded_original: Tensor
    mask: Tensor | None


@dataclass(frozen=True)
class Marked:
    """A marked picture.

    Attributes:
        image: (3, H, W) in [0, 1], rounded to 8 bit, the size of the original.
        bits: The message.
        psnr: In dB; inside the mask where there is one.
        psnr_image: In dB, of the whole picture.
        ssim: Of the whole picture.
        iterations: Optimisation steps taken.
        seconds: Wall time.
        watermark: What was optimised.
    """

    image: Tensor
    bits: Tensor
    psnr: float
    psnr_image: float
    ssim: float
    iterations: int
    seconds: float
    watermark: Watermark


def working_image(image: Tensor, size: int = WORKING_SIZE) -> tuple[Tensor, Tensor]:
    """Bring a picture to the size at which it is marked.

    The aspect is kept to the pixel, so that the mark lies undistorted in the original; what the model's sides need
    beyond that is padding, which never reaches the composed picture.

    Args:
        image: (3, H, W) in [0, 1].
        size: The shorter side of the result.

    Returns:
        The working picture (1, 3, h, w) and the same padded at the right and the bottom to multiples of 64.

    Raises:
        ValueError: The working picture would be too large.
    """
    height, width = image.shape[-2:]
    scale = size / min(height, width)
    h, w = max(1, round(height * scale)), max(1, round(width * scale))
    if h * w > MOST_WORKING_PIXELS:
        raise ValueError(
            f"the image is {width}x{height}, which is {w}x{h} at the working size {size}: more than "
            f"{MOST_WORKING_PIXELS // 10**6} megapixels; choose a smaller size, or crop the image"
        )
    working = image[None]
    if (h, w) != (height, width):
        working = F.interpolate(working, size=(h, w), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    padded = F.pad(working, (0, -w % MULTIPLE, 0, -h % MULTIPLE), mode="replicate")
    return working, padded


def render(
    model: DiffusionModel,
    autoencoder: Autoencoder,
    watermark: Watermark,
    image: Tensor,
    working_size: tuple[int, int],
    *,
    original: OriginalBranch | None = None,
) -> Rendered:
    """Constrained denoising and composition of an optimised watermark.

    Args:
        model: The model that made the inversion.
        autoencoder: Its autoencoder.
        watermark: What `optimise` found.
        image: The original at any resolution, (1, 3, H, W) in [0, 1].
        working_size: (height, width) of the working picture inside the decoded one (without padding).
        original: The original branch, where the caller has it already.
    """
    settings, inversion = watermark.settings, watermark.inversion
    if original is None:
        original = original_branch(model, autoencoder, inversion, Constraint(False, settings.inject, settings.mask))
    with torch.no_grad():
        replay = OriginalBranch(original.latent, original.decoded, [], original.inject, original.mask)
        latent, decoded, _ = marked_branch(model, autoencoder, inversion, watermark.delta, replay, space=settings.space)
        height, width = working_size
        decoded = decoded[..., :height, :width]
        decoded_original = original.decoded[..., :height, :width]
        mask = combined_mask(original.mask, watermark.mask, working_size)
        composition = compose(
            image,
            decoded,
            decoded_original,
            mode=settings.composition,
            mask=mask,
            target_psnr=settings.target_psnr,
            visibility=settings.visibility,
            luma_only=settings.luma_only,
        )
    return Rendered(composition, latent, decoded, decoded_original, mask)


def embed(
    image: Tensor,
    model: DiffusionModel,
    autoencoder: Autoencoder,
    extractor: Extractor,
    bits: Tensor,
    *,
    positive: Conditioning,
    null: Conditioning,
    settings: Settings,
    generator: torch.Generator,
    size: int = WORKING_SIZE,
    mask: Tensor | None = None,
    on_inversion: Callable[[InversionState], None] | None = None,
    on_state: Callable[[State], None] | None = None,
) -> Marked:
    """Mark one picture.

    Args:
        image: (3, H, W) in [0, 1].
        model: A frozen diffusion model.
        autoencoder: Its autoencoder.
        extractor: The reader that the mark is made for.
        bits: (extractor.num_bits,) of 0/1.
        positive: The prompt's conditioning.
        null: The empty prompt's conditioning.
        settings: A preset or a change of one.
        generator: Draws everything random.
        size: The working size: the shorter side at which the picture is optimised, in pixels.
        mask: (1, 1, H, W) in [0, 1]: where the mark may lie.
        on_inversion: Called with each `InversionState`, for progress.
        on_state: Called with each `State`, for progress and previews.

    Returns:
        The marked picture at the original's resolution, with its figures.
    """
    start = time.perf_counter()
    working, padded = working_image(image, size)
    with torch.no_grad():
        latent = autoencoder.encode(padded)
    for step in invert(
        model,
        latent,
        positive,
        null,
        steps=settings.steps,
        start_sigma=settings.start_sigma,
        guidance=settings.guidance,
        method=settings.method,
        image=image_digest(image),
    ):
        if on_inversion is not None:
            on_inversion(step)
    inversion = step.inversion
    original = original_branch(model, autoencoder, inversion, settings.constraint)
    state = None
    for state in optimise(
        model,
        autoencoder,
        inversion,
        working,
        extractor,
        bits,
        settings,
        generator=generator,
        mask=mask,
        original=original,
    ):
        if on_state is not None:
            on_state(state)
    working_size = tuple(working.shape[-2:])
    rendered = render(model, autoencoder, state.watermark, image[None], working_size, original=original)
    result = rendered.composition
    return Marked(
        image=result.image[0],
        bits=bits,
        psnr=result.psnr,
        psnr_image=result.psnr_image,
        ssim=float(ssim(result.image, image[None])),
        iterations=state.iteration,
        seconds=time.perf_counter() - start,
        watermark=state.watermark,
    )
