"""The ONRW pipeline (arXiv 2601.17388): embedding in four stages.

1. Inversion: the diffusion ODE is integrated from the image's latent to the noise that samples it.
2. Noise optimisation: a change of that noise is optimised so that the extractor reads the message after random attacks.
3. Constrained denoising: the changed and the original noise are denoised and decoded, under the constraints.
4. Composition: the difference of the two decoded images is added to the original, at its own resolution and at the
   requested quality.

Extraction needs the image alone, see `Extractor.read`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import heap
from .arguments import check_types
from .attacks import training_mix
from .attacks.regeneration import regenerations
from .diffusion.model import Autoencoder, Conditioning, DiffusionModel
from .extractors.base import Extractor, working_size
from .imaging.geometry import size_of
from .imaging.metrics import ssim
from .imaging.pixels import MIN_SIDE, as_mask, as_rgb
from .payload.message import as_bits
from .stages.composition import Composer, Composition, compose, resized
from .stages.constrained_denoising import Constraint, OriginalBranch, marked_branch, original_branch
from .stages.inversion import InversionState, invert
from .stages.noise_optimisation import Objective, Settings, State, Watermark, combined_mask, optimise
from .stages.progress import result_of
from .stages.quality import Judgement
from .stages.robustness import OnForecast, Robustness, robustness, tell_if_weak
from .stages.sparing import spared
from .stages.working_image import blend, iterations_at, padded, windows, working_image
from .torch_modes import in_own_modes

__all__ = ["Denoised", "Marked", "denoise_watermark", "embed"]


@dataclass(frozen=True)
class Marked:
    """A marked image.

    Attributes:
        image: (3, H, W) in [0, 1], rounded to 8 bit, the size of the original.
        bits: The message.
        judgement: SSIMULACRA2 (with a mask, inside of it) and the worst place.
        psnr: PSNR in dB; with a mask, inside of it.
        psnr_image: PSNR of the whole image in dB.
        ssim: SSIM of the whole image.
        iterations: Number of iterations, over all windows.
        seconds: Wall time.
        watermarks: The optimised watermark of each window of the working image, nearly always one; none for the later
            frames of a clip.
        residual: The change of the working image before composition, (1, 3, h, w).
        extractor: The extractor with the image's place in the pattern.
        robustness: Where the forecast was weak.
    """

    image: Tensor
    bits: Tensor
    judgement: Judgement
    psnr: float
    psnr_image: float
    ssim: float
    iterations: int
    seconds: float
    watermarks: tuple[Watermark, ...]
    residual: Tensor
    extractor: Extractor
    robustness: Robustness | None = None

    @property
    def label(self) -> str | None:
        """The public label that the image has, which may be that of an earlier watermark; None without a layer."""
        return self.extractor.public


@in_own_modes
def embed(
    image: Tensor,
    model: DiffusionModel,
    autoencoder: Autoencoder,
    extractor: Extractor,
    bits: Tensor,
    *,
    positive: Conditioning,
    null: Conditioning | None,
    settings: Settings,
    generator: torch.Generator,
    size: int | None = None,
    mask: Tensor | None = None,
    on_forecast: OnForecast | None = None,
    on_inversion: Callable[[InversionState], None] | None = None,
    on_state: Callable[[State], None] | None = None,
) -> Marked:
    """Embed a message in one image.

    Args:
        image: (3, H, W) in [0, 1]; values outside are clamped, and quality is measured against the clamped image.
        model: A frozen diffusion model.
        autoencoder: Its autoencoder.
        extractor: The extractor that is to read the watermark.
        bits: (extractor.num_bits,) of 0/1.
        positive: The prompt's conditioning.
        null: The empty prompt's conditioning; None without guidance.
        settings: Settings, such as one of `PRESETS`.
        generator: Source of all random draws.
        size: The working size: the shorter side at which the image is optimised, in pixels; None for the default, with
            `iterations_at` it.
        mask: (1, 1, H, W) in [0, 1]: area of the watermark.
        on_forecast: Called before the work with the forecast of the robustness, if it is weak, see `tell_if_weak`.
        on_inversion: Called with each `InversionState`, for progress.
        on_state: Called with each `State`, for progress and previews; iterations are counted over all windows.

    Returns:
        The marked image at the original's resolution, with its figures.

    Raises:
        AlreadyMarkedError: The image carries a watermark of the same key, and `settings.again` is off.
        ValueError: Input that `as_rgb` or `as_mask` refuses, another argument of another kind, or a working image that
            is too large.
    """
    start = time.perf_counter()
    image = as_rgb(image, min_side=MIN_SIDE)
    check_types(
        model=(model, DiffusionModel),
        autoencoder=(autoencoder, Autoencoder),
        extractor=(extractor, Extractor),
        positive=(positive, Conditioning),
        null=(null, Conditioning | None),
        settings=(settings, Settings),
        generator=(generator, torch.Generator),
        on_forecast=(on_forecast, Callable | None),
        on_inversion=(on_inversion, Callable | None),
        on_state=(on_state, Callable | None),
    )
    bits = as_bits(bits)
    if len(bits) != extractor.num_bits:
        raise ValueError(f"bits: are {len(bits)}, and the extractor reads {extractor.num_bits}; use its for_bits()")
    settings = settings.suited_to(model.distilled)
    default = size is None
    size = working_size(size, *size_of(image))
    working = working_image(image, size)
    whole = size_of(working)
    if default:
        settings = replace(settings, iterations=iterations_at(settings.iterations, whole))
    mask = None if mask is None else as_mask(mask)
    area = None if mask is None else resized(mask, whole, "bilinear")
    parts = [part for part in windows(*whole) if area is None or part.cut(area).any()]

    if whole != size_of(image) and not settings.again:
        extractor.refuse_marked(image[None])
    extractor = extractor.for_image(working, settings.label, settings.again)
    weak = False
    if on_forecast is not None:
        part = parts[0]
        composer = Composer(part.cut(working), settings.composing, mask=None if area is None else part.cut(area))
        weak = tell_if_weak(composer, extractor.for_window(part.top, part.left), bits, on_forecast)
    watermarks, results = [], []
    for index, part in enumerate(parts):
        # 1. Inversion
        with torch.no_grad():
            latent = autoencoder.encode(padded(part.cut(working)))
        inverting = invert(
            model,
            latent,
            positive,
            null,
            steps=settings.steps,
            start_sigma=settings.start_sigma,
            guidance=settings.guidance,
            method=settings.method,
        )
        inversion = result_of(inverting, on_inversion)
        # 2. Noise optimisation
        original = original_branch(model, autoencoder, inversion, settings.constraint)
        objective = Objective(
            model,
            autoencoder,
            inversion,
            part.cut(working),
            extractor.for_window(part.top, part.left),
            bits,
            settings,
            mask=None if area is None else part.cut(area),
            original=original,
        )
        optimising = optimise(objective, generator=generator)
        watermarks.append(result_of(optimising, _counting_on(on_state, index, len(parts))))
        # 3. Constrained denoising
        denoised = denoise_watermark(model, autoencoder, watermarks[-1], part.size, original=original)
        results.append(denoised if len(parts) == 1 else _at_its_limit(denoised, part.cut(working), settings))
        del objective, optimising, inverting, original, denoised
        heap.trim()
    # 4. Composition
    decoded = blend(parts, [result.decoded for result in results], whole)
    decoded_original = blend(parts, [result.decoded_original for result in results], whole)
    masks = [result.mask for result in results if result.mask is not None]
    changed = blend(parts, masks, whole) if masks else None
    del results

    def composed(quality: float | None) -> Composition:
        options = replace(settings.composing, quality=quality)
        return compose(image[None], decoded, decoded_original, options, mask=changed, area=mask)

    if settings.spare and settings.quality is not None:
        regeneration = regenerations(model, autoencoder, watermarks[-1].inversion.unconditional)
        mix = training_mix(settings.mix, regeneration, extractor.window)
        composition = spared(composed, settings.quality, extractor, bits, mix, generator, size)
    else:
        composition = composed(settings.quality)
    heap.trim()
    held = None
    if weak:
        held = robustness(working_image(composition.image[0], size), extractor, bits)
    return Marked(
        image=composition.image[0],
        bits=bits,
        judgement=composition.judgement,
        psnr=composition.psnr,
        psnr_image=composition.psnr_image,
        ssim=float(ssim(composition.image, image[None])),
        iterations=sum(watermark.report["iterations"] for watermark in watermarks),
        seconds=time.perf_counter() - start,
        watermarks=tuple(watermarks),
        residual=decoded - decoded_original,
        extractor=extractor,
        robustness=held,
    )


@dataclass(frozen=True)
class Denoised:
    """The result of constrained denoising.

    Attributes:
        latent: The marked clean latent, (1, C, h, w).
        decoded: Its image with the residual of the watermark, (1, 3, H, W), not clamped, at working size.
        decoded_original: The image of the original branch.
        mask: Area of the change, (1, 1, H, W), or None.
    """

    latent: Tensor
    decoded: Tensor
    decoded_original: Tensor
    mask: Tensor | None


def denoise_watermark(
    model: DiffusionModel,
    autoencoder: Autoencoder,
    watermark: Watermark,
    size: tuple[int, int],
    *,
    original: OriginalBranch | None = None,
) -> Denoised:
    """Stage 3: constrained denoising of an optimised watermark.

    Args:
        model: The model of the inversion.
        autoencoder: Its autoencoder.
        watermark: The result of `optimise`.
        size: (height, width) of the working image inside the decoded one, without padding.
        original: The original branch, if it was computed before.
    """
    settings, inversion = watermark.settings, watermark.inversion
    if original is None:
        original = original_branch(model, autoencoder, inversion, Constraint(False, settings.inject, settings.mask))
    with torch.no_grad():
        unconstrained = replace(original, reference=[])  # the loss is for the optimisation alone
        latent, decoded, _ = marked_branch(
            model, autoencoder, inversion, watermark.delta, unconstrained, space=settings.space
        )
    decoded = watermark.with_residual(decoded)
    height, width = size
    mask = combined_mask(original.mask, watermark.mask, size)
    return Denoised(latent, decoded[..., :height, :width], original.decoded[..., :height, :width], mask)


def _at_its_limit(denoised: Denoised, image: Tensor, settings: Settings) -> Denoised:
    """The change scaled as the window's own composition would scale it, so that windows of one image are in balance."""
    if settings.composition != "residual":
        return denoised
    decoded, below = denoised.decoded, denoised.decoded_original
    scale = compose(image, decoded, below, settings.composing, mask=denoised.mask).scale
    return replace(denoised, decoded=below + scale * (decoded - below))


def _counting_on(on_state: Callable[[State], None] | None, index: int, count: int) -> Callable[[State], None] | None:
    """`on_state` for window `index` of `count`, with iterations counted over all windows."""
    if on_state is None or count == 1:
        return on_state
    return lambda state: on_state(
        replace(state, iteration=index * state.total + state.iteration, total=count * state.total)
    )
