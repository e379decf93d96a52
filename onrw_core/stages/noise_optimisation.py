"""Watermark noise optimisation (arXiv 2601.17388): optimise the noise until its image carries the message.

A change `delta` of the inverted latent at the start sigma is optimised by AdamW through the remaining denoising steps,
the decoder, the composition with the original, random attacks and the frozen extractor:

    loss = w_message * message loss + w_image * MSE(decoded, original) + w_attention * self-attention MSE

`delta` is in the latent's unit-variance scale and has no weight decay. With residual composition the residual is always
scaled to the target quality, so that the message is optimised at the requested quality and no image loss is needed.
With mask composition the image loss determines the quality.

With residual composition, the last iterations can change the decoded image itself, in the same way but without the
model: they add what the decoder cannot express, in a third of the time (docs/quality.md has the measurements).
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from ..arguments import as_whole, check_type, is_number, shown
from ..attacks import MIXES, training_mix
from ..attacks.regeneration import regenerations
from ..diffusion.checkpointing import CheckpointingOnDemand
from ..diffusion.model import Autoencoder, DiffusionModel
from ..extractors import LABELS, NO_LABEL
from ..extractors.base import Extractor
from ..imaging.geometry import size_of
from ..imaging.metrics import psnr
from ..payload.keys import hidden_keys
from .composition import Composer, CompositionOptions
from .constrained_denoising import SPACES, Constraint, OriginalBranch, marked_branch, original_branch
from .inversion_record import Inversion
from .quality import DEFAULT_QUALITY, HIGHEST, LOWEST
from .warm_start import INITIAL_RMS, STEPS, warm_start

__all__ = ["PRESETS", "Objective", "Settings", "State", "Watermark", "combined_mask", "optimise", "preset_for"]

KINDS = {"bool": bool, "str": str}  # of settings
# With the gradient normalised to unit root mean square and an epsilon of that size, AdamW steps along the gradient
# rather than its sign, whose size in flat areas would cost quality without carrying bits.
EPSILON = 1.0
TINY = 1e-20
FINAL_RATE = 0.1  # final learning rate of the cosine schedule, relative to the initial rate
# Learning rate of the iterations on the image, relative to the root mean square of the residual that they begin with.
IMAGE_RATE = 0.35


@dataclass(frozen=True)
class Settings:
    """Settings of inversion, optimisation and composition.

    Attributes:
        start_sigma: Noise level of the latent that is optimised.
        steps: Denoising steps from there to a clean latent.
        guidance: Classifier-free guidance of the replay.
        method: Inversion method, see `inversion.invert`.
        iterations: Largest number of iterations.
        learning_rate: Learning rate of AdamW, in the latent's unit-variance scale; cosine-annealed to 10 % of its
            initial value.
        message_weight: Weight of the extractor's loss.
        image_weight: Weight of the mean squared error between decoded and original image, in mask composition alone.
        attention_weight: Weight of the self-attention constraint; at 0 no map is recorded.
        attacks: Random attacks per iteration, all on the same decoded image.
        mix: Training mix of the attacks, one of `attacks.MIXES`.
        quality: SSIMULACRA2 of the composed image at least, see `limits`; None for `target_psnr` instead. With mask
            composition, the quality results from the loss.
        target_psnr: PSNR of the composed image in dB, if there is no `quality`.
        composition: "residual" or "mask", see `compose`.
        luma_only: Add only the residual's luminance to the image, in one colour, see `compose`.
        visibility: Shape the residual by its visibility, see `shaping`; otherwise it is only scaled.
        warm_steps: Steps on the image before the first iteration, see `warm_start`.
        on_image: Share of the iterations, the last ones, that change the decoded image instead of the noise; only in
            residual composition.
        label: Public label of the watermark, see `extractors.keyed.public_layer`; None for no public layer.
        again: Mark images again that carry a watermark of this key already; otherwise they are refused.
        mask: Pseudo-mask that limits the change: "none", "soft" or "hard".
        inject: Replace the self-attention by that of the original instead of comparing the two.
        checkpointing: Recompute activations in the backward pass; switched on as soon as GPU memory is exhausted.
        space: The optimised variable: the "noise" (ONRW), or for comparison the clean "latent" or the "pixel" values.
        patience: Stop after this many consecutive iterations in which the message survived every attack.
        spare: Compose at the highest quality from `quality` on at which the message is still safe, see `sparing`.
    """

    start_sigma: float
    steps: int
    guidance: float = 1.0
    method: str = "ddim"
    iterations: int = 24
    learning_rate: float = 0.1
    message_weight: float = 100.0
    image_weight: float = 20.0
    attention_weight: float = 80.0
    attacks: int = 4
    mix: str = "all"
    quality: float | None = DEFAULT_QUALITY
    target_psnr: float = 42.0
    composition: str = "residual"
    luma_only: bool = True
    visibility: bool = True
    warm_steps: int = STEPS
    on_image: float = 0.0
    label: str | None = NO_LABEL
    again: bool = False
    mask: str = "none"
    inject: bool = False
    checkpointing: bool = False
    space: str = "noise"
    patience: int = 12
    spare: bool = False

    @hidden_keys()
    def __post_init__(self) -> None:
        for each in fields(self):
            value, (kind, *optional) = getattr(self, each.name), str(each.type).split(" | ")
            if value is None and optional:
                continue
            if kind == "int":
                as_whole(each.name, value, 1)
            elif kind == "float" and not is_number(value):
                raise ValueError(f"{each.name}: is {shown(value)}; give a finite number")
            elif kind in KINDS:
                check_type(each.name, value, KINDS[kind])
        if not 0 <= self.on_image < 1:
            raise ValueError(f"on_image is {self.on_image}; it must be at least 0 and less than 1")
        if self.space not in SPACES:
            raise ValueError(f"space is {self.space!r}; choose one of {', '.join(SPACES)}")
        if self.mix not in MIXES:
            raise ValueError(f"mix is {self.mix!r}; choose one of {', '.join(MIXES)}")
        _ = self.constraint, self.composing  # which check the mask, and the composition with its PSNR
        if self.label is not None and self.label not in LABELS:
            known = ", ".join(LABELS)
            raise ValueError(f"label: is {self.label!r}; choose one of {known}, or None for no public layer")
        if self.start_sigma <= 0 or self.learning_rate <= 0:
            raise ValueError("start_sigma and learning_rate must be positive")
        if self.quality is not None and not LOWEST <= self.quality <= HIGHEST:
            raise ValueError(f"quality: is {self.quality}; give a score of SSIMULACRA2, {LOWEST:g} to {HIGHEST:g}")
        if self.spare and (self.quality is None or self.composition != "residual"):
            raise ValueError("spare: raises the quality of residual composition; give a quality, not a target_psnr")

    @property
    def constraint(self) -> Constraint:
        """The maps to record of the original branch; with injection the attention loss is not needed."""
        return Constraint(self.attention_weight > 0 and not self.inject, self.inject, self.mask)

    @property
    def phases(self) -> tuple[int, int]:
        """The iterations through the model, at least one, and those on the image."""
        if self.composition != "residual" or self.space == "pixel":
            return self.iterations, 0
        on_image = min(round(self.on_image * self.iterations), self.iterations - 1)
        return self.iterations - on_image, on_image

    @property
    def composing(self) -> CompositionOptions:
        """The options of `Composer` and `compose`."""
        return CompositionOptions(
            self.composition, self.quality, self.target_psnr, visibility=self.visibility, luma_only=self.luma_only
        )

    def suited_to(self, distilled: bool) -> Settings:
        """The settings for a model: a distilled one has guidance as an input, and no null embedding to optimise."""
        return replace(self, guidance=1.0, method="fixed-point") if distilled else self

    def with_(self, **changes) -> Settings:
        """A copy with some settings replaced; None keeps the present value, and a target PSNR replaces the quality."""
        given = {name: value for name, value in changes.items() if value is not None}
        if "target_psnr" in given:
            given["quality"] = None
        return replace(self, **given)


FAST = Settings(start_sigma=0.2, steps=1, guidance=1.0, attention_weight=0.0, iterations=40, patience=24, on_image=0.8)
PRESETS = {
    # One step from the sigma of the paper's public code, where the UNet is nearly the identity.
    "reference": Settings(start_sigma=0.041, steps=1, guidance=1.0, iterations=100, attacks=1),
    "fast": FAST,
    # fast, against regeneration by a model as well, and at a quality at which a watermark survives that.
    "endure": FAST.with_(mix="regeneration", quality=70.0),
    # The pixels themselves: the model takes no part in the optimisation.
    "quick": Settings(start_sigma=0.2, steps=1, guidance=1.0, attention_weight=0.0, space="pixel"),
    # As in the text of the paper: null-text inversion, guidance, several steps, soft mask.
    "paper": Settings(
        start_sigma=1.0,
        steps=10,
        guidance=4.5,
        method="null-text",
        iterations=100,
        mask="soft",
        checkpointing=True,
    ),
}


def preset_for(name: str, extractor: Extractor) -> Settings:
    """The settings of a preset, adapted to the extractor that is to read the watermark (`Extractor.marking`).

    Raises:
        ValueError: There is no such preset, or it is for ONRW's own watermark: what makes it, the mix and the quality,
            would be the extractor's.
    """
    if name not in PRESETS:
        raise ValueError(f"settings: no preset {name!r}; choose from {', '.join(PRESETS)}")
    settings = PRESETS[name]
    if settings.mix == "regeneration" and "mix" in extractor.marking:
        raise ValueError(f"preset: {name} is for ONRW's own watermark; use fast with a third-party decoder")
    return settings.with_(**extractor.marking)


@dataclass(frozen=True)
class Watermark:
    """An optimised watermark: the input of constrained denoising.

    Attributes:
        inversion: The inverted image.
        delta: Change of its noise, (1, C, h, w), in the latent's unit-variance scale.
        residual: Change of the decoded image by the iterations on the image, (1, 3, H, W), of the size of the decoded
            latent; None without such iterations.
        mask: Area of the change, (1, 1, H, W) in [0, 1]; None for the whole image.
        bits: The message, (k,).
        settings: Settings of the optimisation.
        report: "iterations", and "history" with the losses, bit accuracy and PSNR of each iteration.
    """

    inversion: Inversion
    delta: Tensor
    residual: Tensor | None
    mask: Tensor | None
    bits: Tensor
    settings: Settings
    report: dict = field(default_factory=dict)

    def with_residual(self, decoded: Tensor) -> Tensor:
        """The decoded image of the changed noise, (1, 3, H, W), with the residual."""
        return decoded if self.residual is None else decoded + self.residual.to(decoded)


@dataclass(frozen=True)
class State:
    """State of the optimisation after an iteration.

    Attributes:
        iteration: Number of the iteration, from 1.
        total: Largest number of iterations.
        loss: Weighted total.
        message_loss, image_loss, attention_loss: The terms, unweighted.
        bit_accuracy: Mean over this iteration's attacks.
        psnr: PSNR of the composed image at working size, in dB, over the whole image.
        image: The marked image of this iteration, (1, 3, H, W), detached.
    """

    iteration: int
    total: int
    loss: float
    message_loss: float
    image_loss: float
    attention_loss: float
    bit_accuracy: float
    psnr: float
    image: Tensor


@dataclass(frozen=True)
class Losses:
    """The terms of the loss for one change of the noise.

    Attributes:
        message, image, attention: Unweighted scalars, with gradient; see the module.
        bit_accuracies: Bit accuracy under each attack.
        marked: The composed image, (1, 3, H, W), detached.
    """

    message: Tensor
    image: Tensor
    attention: Tensor
    bit_accuracies: list[float]
    marked: Tensor

    def total(self, settings: Settings) -> Tensor:
        """The weighted sum, a scalar with gradient."""
        return (
            settings.message_weight * self.message
            + settings.image_weight * self.image
            + settings.attention_weight * self.attention
        )


Differentiated = tuple[Losses, dict[str, float], Tensor]  # the losses, their figures as in `State`, the gradient


class Objective:
    """The loss as a function of the change of the noise; terms that do not depend on it are computed once."""

    def __init__(
        self,
        model: DiffusionModel,
        autoencoder: Autoencoder,
        inversion: Inversion,
        image: Tensor,
        extractor: Extractor,
        bits: Tensor,
        settings: Settings,
        *,
        mask: Tensor | None = None,
        original: OriginalBranch | None = None,
    ) -> None:
        """
        Args:
            model: The frozen model that made the inversion.
            autoencoder: Its autoencoder.
            inversion: The inverted image, from the start sigma on.
            image: The image at working size, (1, 3, H, W) in [0, 1]; at most as large as the decoded latent, whose
                upper left corner it is compared with.
            extractor: Reads the message; that of `Extractor.for_image`.
            bits: (extractor.num_bits,) of 0/1.
            settings: See `Settings`.
            mask: The user's mask, (1, 1, H, W) in [0, 1].
            original: The original branch, if the caller has already computed it.

        Raises:
            ValueError: If the number of bits is not the extractor's, or the image is larger than the decoded latent.
        """
        if bits.shape != (extractor.num_bits,):
            raise ValueError(
                f"the message has {bits.numel()} bits and the extractor {extractor.name!r} reads {extractor.num_bits}"
            )
        if original is None:
            original = original_branch(model, autoencoder, inversion, settings.constraint)
        self.size = height, width = size_of(image)
        if height > original.decoded.shape[-2] or width > original.decoded.shape[-1]:
            raise ValueError(
                f"the image is {width}x{height} and the inverted latent decodes to {original.decoded.shape[-1]}x"
                f"{original.decoded.shape[-2]}; encode the image that is to be marked"
            )
        self.model, self.autoencoder, self.inversion, self.original = model, autoencoder, inversion, original
        self.image, self.extractor, self.bits, self.settings = image, extractor, bits, settings
        self.mask = mask
        self.composer = Composer(image, settings.composing, mask=combined_mask(original.mask, mask, self.size))
        regeneration = regenerations(model, autoencoder, inversion.unconditional)
        self.mix = training_mix(settings.mix, regeneration, extractor.window)

    def initial_delta(self, generator: torch.Generator) -> Tensor:
        """The initial change: a warm start for residual composition, else small random noise."""
        settings, original = self.settings, self.original
        like = original.decoded if settings.space == "pixel" else original.latent
        if settings.composition != "residual" or settings.space == "pixel":
            return (torch.randn(like.shape, generator=generator) * INITIAL_RMS).to(like)
        return warm_start(
            self.autoencoder,
            original.decoded,
            self.composer,
            self.extractor,
            self.bits,
            self.mix,
            generator,
            settings.warm_steps,
        ).to(like)

    def denoised(self, delta: Tensor, *, checkpointing: bool = False) -> tuple[Tensor, Tensor]:
        """The decoded image of a change, see `marked_branch`, and the self-attention loss."""
        _, decoded, attention_loss = marked_branch(
            self.model,
            self.autoencoder,
            self.inversion,
            delta,
            self.original,
            space=self.settings.space,
            checkpointing=checkpointing,
        )
        return decoded, attention_loss

    def losses(self, decoded: Tensor, attention_loss: Tensor, generator: torch.Generator) -> Losses:
        """Compose, attack and read.

        Args:
            decoded: The decoded image of a change, (1, 3, H, W).
            attention_loss: Of that change.
            generator: Draws the attacks.
        """
        height, width = self.size
        decoded = decoded[..., :height, :width]
        marked = self.composer(decoded, self.original.decoded[..., :height, :width])
        expected = self.bits.to(marked.device).bool()
        losses, accuracies = [], []
        for attack in self.mix.draw(generator, self.settings.attacks):
            attacked = attack(marked, generator)
            loss, logits = self.extractor.loss_and_logits(attacked.images, self.bits, attacked.geometry)
            losses.append(loss.mean())
            accuracies.append(((logits > 0) == expected).float().mean().item())
        message_loss, image_loss = torch.stack(losses).mean(), marked.new_zeros(())
        if self.settings.composition == "mask":
            image_loss = (decoded - self.image).square().mean()
        return Losses(message_loss, image_loss, attention_loss, accuracies, marked.detach())

    def differentiated(
        self, delta: Tensor, generator: torch.Generator, *, checkpointing: bool = False
    ) -> Differentiated:
        """The losses, their figures as in `State`, and the gradient of the weighted sum, shaped like `delta`.

        Args:
            delta: The change, see `marked_branch`.
            generator: Draws the attacks.
            checkpointing: Recompute activations in the backward pass.
        """
        return self._differentiated(*self.denoised(delta, checkpointing=checkpointing), delta, generator)

    def differentiated_on_image(self, decoded: Tensor, residual: Tensor, generator: torch.Generator) -> Differentiated:
        """As `differentiated`, of a residual that is added to a decoded image."""
        return self._differentiated(decoded + residual, residual.new_zeros(()), residual, generator)

    def _differentiated(
        self, decoded: Tensor, attention_loss: Tensor, variable: Tensor, generator: torch.Generator
    ) -> Differentiated:
        losses = self.losses(decoded, attention_loss, generator)
        total = losses.total(self.settings)
        (gradient,) = torch.autograd.grad(total, variable)
        figures = {
            "loss": total.item(),
            "message_loss": losses.message.item(),
            "image_loss": losses.image.item(),
            "attention_loss": losses.attention.item(),
            "bit_accuracy": sum(losses.bit_accuracies) / len(losses.bit_accuracies),
            "psnr": float(psnr(losses.marked, self.image)),
        }
        return losses, figures, gradient


def optimise(objective: Objective, *, generator: torch.Generator) -> Generator[State, None, Watermark]:
    """Optimise the noise of one image until it carries the bits of `objective`; `result_of` runs it to its end.

    Args:
        objective: The loss.
        generator: Draws the attacks and the first change of the noise.

    Yields:
        A `State` after each iteration.

    Returns:
        The watermark.
    """
    settings = objective.settings
    history: list[dict[str, float]] = []

    def descend(
        variable: Tensor,
        rate: float,
        iterations: int,
        differentiated: Callable[[Tensor], Differentiated],
    ) -> Generator[State, None, None]:
        optimiser = torch.optim.AdamW([variable], rate, eps=EPSILON, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, iterations, eta_min=rate * FINAL_RATE)
        correct = 0  # iterations in a row with every bit right under every attack
        for iteration in range(1, iterations + 1):
            losses, figures, gradient = differentiated(variable)
            history.append(figures)
            yield State(len(history), settings.iterations, image=losses.marked, **figures)
            correct = correct + 1 if min(losses.bit_accuracies) == 1 else 0
            if iteration == iterations or correct >= settings.patience:
                break
            variable.grad = gradient / gradient.square().mean().sqrt().clamp(min=TINY)
            optimiser.step()
            schedule.step()

    delta = objective.initial_delta(generator).requires_grad_()
    differentiated = CheckpointingOnDemand(objective.differentiated, settings.checkpointing)
    through_model, on_image = settings.phases
    yield from descend(delta, settings.learning_rate, through_model, lambda x: differentiated(x, generator))
    residual = None
    if on_image:
        with torch.no_grad():
            decoded, _ = objective.denoised(delta)
            rms = (decoded - objective.original.decoded).square().mean().sqrt().clamp(min=TINY)
        residual = torch.zeros_like(decoded).requires_grad_()
        yield from descend(
            residual,
            IMAGE_RATE * float(rms),
            on_image,
            lambda x: objective.differentiated_on_image(decoded, x, generator),
        )
        residual = residual.detach()
    report = {"iterations": len(history), "history": history}
    return Watermark(
        objective.inversion, delta.detach().clone(), residual, objective.mask, objective.bits, settings, report
    )


def combined_mask(pseudo: Tensor | None, user: Tensor | None, size: tuple[int, int]) -> Tensor | None:
    """Product of the pseudo-mask (at latent size) and the user's mask, at `size`; None if there is neither."""
    masks = [m for m in (pseudo, user) if m is not None]
    if not masks:
        return None
    product = torch.ones(1, 1, *size)
    for m in masks:
        m = torch.nn.functional.interpolate(m.float().cpu(), size=size, mode="bilinear", align_corners=False)
        product = product * m.clamp(0, 1)
    return product
