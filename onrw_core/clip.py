"""Marking the frames of a clip with one message, by a residual that is consistent in time.

The first frame is marked as any image is (`pipeline.embed`). Each later frame takes over the residual of the frame
before, moved with the scene: the translation of the content is estimated (`registration`), and both the residual and
its place in the pattern follow it. So the watermark is a fixed part of the scene. It does not flicker, and a video
encoder carries it from frame to frame by its motion compensation, instead of coding it anew or dropping it. Then a step
on the pixels adapts the residual to the frame, mostly where the scene is new. Where a frame has too little in common
with the frames before, a new scene begins: the steps are more, and the place is that of the first frame again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from . import pipeline
from .attacks import TrainingMix, training_mix
from .attacks.regeneration import regenerations
from .diffusion.model import Autoencoder, Conditioning, DiffusionModel
from .extractors.base import WORKING_SIZE, Extractor
from .imaging.geometry import size_of
from .imaging.metrics import ssim
from .imaging.pixels import as_mask, as_rgb
from .imaging.registration import Shift, overlap, translated, translation
from .pipeline import Marked
from .stages.composition import Composer, compose
from .stages.noise_optimisation import Settings, State
from .stages.working_image import working_image

__all__ = ["embed"]

STEPS, SCENE_STEPS = 1, 12  # on a frame, and on the first frame of a new scene
STEP = 0.05  # root mean square of a step, relative to that of the residual
SCENE_STEP = 0.3
ATTACKS = 2  # random attacks per step
NEAR = 0.5  # overlap with the reference frame below which the present frame becomes the reference
TINY = 1e-20


def embed(
    frames: Iterable[Tensor],
    model: DiffusionModel,
    autoencoder: Autoencoder,
    extractor: Extractor,
    bits: Tensor,
    *,
    positive: Conditioning,
    null: Conditioning | None,
    settings: Settings,
    generator: torch.Generator,
    size: int = WORKING_SIZE,
    mask: Tensor | None = None,
    on_state: Callable[[State], None] | None = None,
) -> Iterator[Marked]:
    """Embed one message in the frames of a clip; see `pipeline.embed` for what is not described here.

    Args:
        frames: Frames in their order, each (3, H, W) in [0, 1], all of one size.
        settings: Of the first frame; quality and attacks are those of all frames.
        mask: (1, 1, H, W) in [0, 1]: area of the watermark in each frame.
        on_state: Called during the optimisation of the first frame.

    Yields:
        Each frame marked, as soon as it is; no other frames are kept.

    Raises:
        AlreadyMarkedError: The first frame carries a watermark of the same key, and `settings.again` is off.
        ValueError: As `pipeline.embed`, or a frame of another size.
    """
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        return
    marked = pipeline.embed(
        first,
        model,
        autoencoder,
        extractor,
        bits,
        positive=positive,
        null=null,
        settings=settings,
        generator=generator,
        size=size,
        mask=mask,
        on_state=on_state,
    )
    yield marked
    settings = settings.suited_to(model.distilled)
    regeneration = regenerations(model, autoencoder, marked.watermarks[-1].inversion.unconditional)
    mix = training_mix(settings.mix, regeneration, extractor.window)
    scene = _Scene(working_image(as_rgb(first), size), marked, mix, settings, generator, size, mask)
    for frame in frames:
        if frame.shape != first.shape:
            raise ValueError(
                f"frames: one has {_pixels(frame)} pixels and the first {_pixels(first)}; give frames of one size"
            )
        yield scene.mark(as_rgb(frame))


class _Scene:
    """The state of a clip between two frames."""

    def __init__(
        self,
        working: Tensor,
        marked: Marked,
        mix: TrainingMix,
        settings: Settings,
        generator: torch.Generator,
        size: int,
        mask: Tensor | None,
    ) -> None:
        self.marked, self.mix, self.settings, self.generator, self.size = marked, mix, settings, generator, size
        self.mask = None
        if mask is not None:
            self.mask = F.interpolate(as_mask(mask), size_of(working), mode="bilinear", align_corners=False)
        self.residual = _unit(marked.residual)
        self.reference = working  # the frame that motion is measured against
        self.before = self.present = Shift(0, 0)  # of the content since the first frame: of the reference, and now

    def mark(self, frame: Tensor) -> Marked:
        """Mark the next frame, (3, H, W)."""
        start = time.perf_counter()
        working = working_image(frame, self.size)
        new = self._follow(working)
        extractor = self.marked.extractor.for_window(-self.present.y, -self.present.x)
        options = self.settings.composing
        self._adapt(Composer(working, options, mask=self.mask), extractor, working, new)
        composition = compose(frame[None], working + self.residual, working, options, mask=self.mask)
        return replace(
            self.marked,
            image=composition.image[0],
            judgement=composition.judgement,
            psnr=composition.psnr,
            psnr_image=composition.psnr_image,
            ssim=float(ssim(composition.image, frame[None])),
            iterations=self._steps(new),
            seconds=time.perf_counter() - start,
            watermarks=(),
            residual=self.residual,
            extractor=extractor,
        )

    def _follow(self, working: Tensor) -> Tensor:
        """Move the residual with the content of a frame; returns where the content is new, (1, 1, h, w), 0 or 1."""
        moved = translation(self.reference, working)
        if moved is None:
            self.reference, self.before, self.present = working, Shift(0, 0), Shift(0, 0)
            return torch.ones_like(working[:, :1])
        now = Shift(self.before.x + moved.x, self.before.y + moved.y)
        self.residual, new = translated(self.residual, Shift(now.x - self.present.x, now.y - self.present.y))
        self.present = now
        if overlap(moved, size_of(working)) < NEAR:
            self.reference, self.before = working, now
        return new

    def _adapt(self, composer: Composer, extractor: Extractor, working: Tensor, new: Tensor) -> None:
        """Adapt the residual to a frame: gradient steps on the pixels."""
        bits, scene = self.marked.bits, bool(new.all())
        for number in range(self._steps(new)):
            residual = self.residual.detach().requires_grad_()
            image = composer(working + residual, working)
            losses = []
            for attack in self.mix.draw(self.generator, ATTACKS):
                attacked = attack(image, self.generator)
                losses.append(extractor.loss(attacked.images, bits, attacked.geometry).mean())
            (gradient,) = torch.autograd.grad(torch.stack(losses).mean(), residual)
            step = -_unit(gradient)
            changed = self.residual + (SCENE_STEP if scene else STEP) * step
            # New content has no residual yet: its first is the step, with the strength of the rest.
            self.residual = _unit(torch.where(new > 0, step, changed) if number == 0 and new.any() else changed)

    @staticmethod
    def _steps(new: Tensor) -> int:
        return SCENE_STEPS if new.all() else STEPS


def _unit(residual: Tensor) -> Tensor:
    """A residual of root mean square 1, where it is not 0: composition scales it, so only its ratios matter."""
    inside = (residual != 0).to(residual)
    mean_square = residual.square().sum() / inside.sum().clamp(min=1)
    return residual * mean_square.clamp(min=TINY).rsqrt()


def _pixels(frame: Tensor) -> str:
    return f"{frame.shape[-1]}x{frame.shape[-2]}"
