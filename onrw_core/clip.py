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
from dataclasses import replace

import torch
from torch import Tensor

from .arguments import check_types
from .attacks import training_mix
from .attacks.regeneration import regenerations
from .diffusion.model import Autoencoder, DiffusionModel
from .extractors.base import Extractor, working_size
from .imaging.geometry import size_of
from .imaging.metrics import ssim
from .imaging.pixels import as_mask, as_rgb
from .imaging.registration import Shift, overlap, translated, translation
from .pipeline import Marked
from .stages.composition import Composer, compose, resized
from .stages.working_image import working_image
from .torch_modes import in_own_modes

__all__ = ["Clip"]

STEPS, SCENE_STEPS = 1, 12  # on a frame, and on the first frame of a new scene
STEP = 0.05  # root mean square of a step, relative to that of the residual
SCENE_STEP = 0.3
ATTACKS = 2  # random attacks per step
NEAR = 0.5  # overlap with the reference frame below which the present frame becomes the reference
TINY = 1e-20


class Clip:
    """A clip whose first frame is marked, and whose later frames are marked in their order."""

    @in_own_modes
    def __init__(
        self,
        first: Tensor,
        marked: Marked,
        model: DiffusionModel,
        autoencoder: Autoencoder,
        *,
        generator: torch.Generator,
        size: int | None = None,
        mask: Tensor | None = None,
    ) -> None:
        """
        Args:
            first: The first frame, (3, H, W) in [0, 1].
            marked: The result of `pipeline.embed` for it; quality, attacks and message are those of all frames.
            model: The model that it was marked with.
            autoencoder: Its autoencoder.
            generator: Source of all random draws.
            size: The working size of the first frame; None for the default.
            mask: (1, 1, H, W) in [0, 1]: area of the watermark in each frame that has no mask of its own.

        Raises:
            ValueError: Input that `as_rgb` or `as_mask` refuses, or another argument of another kind.
        """
        first = as_rgb(first)
        check_types(
            marked=(marked, Marked),
            model=(model, DiffusionModel),
            autoencoder=(autoencoder, Autoencoder),
            generator=(generator, torch.Generator),
        )
        if not marked.watermarks:
            raise ValueError("marked: is of a later frame of a clip; give the result of pipeline.embed for the first")
        size = working_size(size, *size_of(first))
        working, watermark = working_image(first, size), marked.watermarks[-1]
        self.shape, self.marked, self.settings = first.shape, marked, watermark.settings
        self.generator, self.size = generator, size
        regeneration = regenerations(model, autoencoder, watermark.inversion.unconditional)
        self.mix = training_mix(self.settings.mix, regeneration, marked.extractor.window)
        self.area = None if mask is None else as_mask(mask)
        self.residual = _unit(marked.residual)
        self.extractor = marked.extractor  # of the present scene
        self.reference = working  # the frame that motion is measured against
        self.before = self.present = Shift(0, 0)  # of the content since the first frame: of the reference, and now

    @in_own_modes
    def mark(self, frame: Tensor, mask: Tensor | None = None) -> Marked:
        """Mark the next frame.

        Args:
            frame: (3, H, W) in [0, 1].
            mask: (1, 1, H, W) in [0, 1]: area of the watermark in this frame; None for that of the clip.

        Raises:
            ValueError: It has another size than the first frame, or input that `as_rgb` or `as_mask` refuses.
        """
        start = time.perf_counter()
        frame = as_rgb(frame, "frame")
        if frame.shape != self.shape:
            raise ValueError(
                f"frames: one has {_pixels(frame.shape)} pixels and the first {_pixels(self.shape)}; "
                "give frames of one size"
            )
        area = self.area if mask is None else as_mask(mask)
        working = working_image(frame, self.size)
        inside = None if area is None else resized(area, size_of(working), "bilinear")
        new = self._follow(working)
        extractor = self.extractor.for_window(-self.present.y, -self.present.x)
        options = self.settings.composing
        self._adapt(Composer(working, options, mask=inside), extractor, working, new)
        composition = compose(frame[None], working + self.residual, working, options, mask=inside, area=area)
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
            self.extractor = self.extractor.for_scene(working)
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


def _pixels(shape: torch.Size) -> str:
    return f"{shape[-1]}x{shape[-2]}"
