"""Watermark noise optimisation (arXiv 2601.17388): find the noise whose picture carries the message.

A change `delta` of the inverted latent at the start sigma is optimised by AdamW through the remaining denoising steps,
the decoder, the composition with the original, random attacks and the frozen extractor:

    loss = w_message * message loss + w_image * MSE(decoded, original) + w_attention * self-attention MSE

`delta` lives in the latent's unit-variance scale and has no weight decay. With residual composition the picture is
always scaled to the target PSNR, so that the message is optimised at the very quality that is asked for, and there is
no image loss; that is for mask composition, where the quality is what the loss makes of it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .attacks import MIXES, training_mix
from .compose import Composer
from .constrained import SPACES, Constraint, OriginalBranch, marked_branch, original_branch
from .extractors.base import Extractor
from .metrics import psnr
from .model import Autoencoder, DiffusionModel
from .regeneration import regenerations
from .trajectory import Inversion
from .warmstart import STEPS, warm_start

__all__ = ["PRESETS", "Settings", "State", "Watermark", "combined_mask", "optimise"]

log = logging.getLogger(__name__)


# With the gradient brought to unit root mean square and an epsilon of its size, AdamW steps along the gradient rather
# than its sign: flat areas, where the sign is as loud as anywhere, would eat the quality and carry no bits.
EPSILON = 1.0
TINY = 1e-20
INITIAL_DELTA = 1e-3  # a seeded start: at exactly zero the composed residual has no direction
FINAL_RATE = 0.1  # of the learning rate, where the cosine ends


@dataclass(frozen=True)
class Settings:
    """How a picture is inverted, optimised and composed.

    Attributes:
        start_sigma: Noise level of the latent that is optimised.
        steps: Denoising steps from there to a clean latent.
        guidance: Classifier-free guidance of the replay.
        method: Inversion method, see `inversion.invert`.
        iterations: Optimisation steps at most.
        learning_rate: Of AdamW, in the latent's unit-variance scale; falls to a tenth along a cosine.
        message_weight: Of the extractor's loss.
        image_weight: Of the mean squared error between decoded and original picture, in mask composition alone.
        attention_weight: Of the self-attention constraint; at 0 no map is recorded.
        attacks: Random attacks per iteration, all on the same decoded picture.
        mix: What they are drawn from, one of `attacks.MIXES`.
        target_psnr: In dB, of the composed picture.
        composition: "residual" or "mask", see `compose`.
        luma_only: Add only the residual's luminance to the picture, in one colour, see `compose`.
        visibility: Level the residual and shape it by `visibility.visibility`; if not, the gradient alone says how
            strong it is where.
        warm_steps: Steps on the picture before those through the model.
        mask: Pseudo-mask that confines the change: "none", "soft" or "hard".
        inject: Replace the self-attention by the original's instead of comparing it.
        checkpointing: Recompute in the backward pass instead of keeping activations; done anyway once a GPU's memory
            turns out too small for them.
        space: What is optimised: the "noise" (ONRW), or for comparison the clean "latent" or the "pixel" values.
        patience: Stop once the message held under every attack for so many iterations in a row.
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
    target_psnr: float = 42.0
    composition: str = "residual"
    luma_only: bool = True
    visibility: bool = True
    warm_steps: int = STEPS
    mask: str = "none"
    inject: bool = False
    checkpointing: bool = False
    space: str = "noise"
    patience: int = 12

    def __post_init__(self) -> None:
        for name in ("steps", "iterations", "attacks", "patience", "warm_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.space not in SPACES:
            raise ValueError(f"space is {self.space!r}; choose one of {', '.join(SPACES)}")
        if self.mix not in MIXES:
            raise ValueError(f"mix is {self.mix!r}; choose one of {', '.join(MIXES)}")
        if self.start_sigma <= 0 or self.learning_rate <= 0:
            raise ValueError("start_sigma and learning_rate must be positive")

    @property
    def constraint(self) -> Constraint:
        """What the original branch is recorded for; injected maps need no loss beside them."""
        return Constraint(self.attention_weight > 0 and not self.inject, self.inject, self.mask)

    def with_(self, **changes) -> Settings:
        """The same settings with some replaced; None keeps what is there."""
        return replace(self, **{name: value for name, value in changes.items() if value is not None})


PRESETS = {
    # One step from where the public code of the paper starts: the UNet is nearly the identity there.
    "reference": Settings(start_sigma=0.041, steps=1, guidance=1.0, iterations=100, attacks=1),
    "fast": Settings(start_sigma=0.2, steps=1, guidance=1.0, attention_weight=0.0),
    # The paper's text: null-text inversion, guidance, several steps, soft mask.
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


@dataclass(frozen=True)
class Watermark:
    """The result: everything that constrained denoising needs to draw the marked picture again.

    Attributes:
        inversion: The inverted picture, from the start sigma on.
        delta: Change of its noise, (1, C, h, w), in the latent's unit-variance scale.
        mask: Where the change may lie, (1, 1, H, W) in [0, 1]; None for everywhere.
        bits: The message, (k,).
        settings: How it was made.
        report: Figures of the optimisation: "iterations", and "history" with the losses, bit accuracy and PSNR of each.
    """

    inversion: Inversion
    delta: Tensor
    mask: Tensor | None
    bits: Tensor
    settings: Settings
    report: dict = field(default_factory=dict)


@dataclass(frozen=True)
class State:
    """One iteration.

    Attributes:
        iteration: From 1.
        total: Iterations at most.
        loss: Weighted total.
        message_loss, image_loss, attention_loss: The terms, unweighted.
        bit_accuracy: Mean over this iteration's attacks.
        psnr: Of the composed picture at working size, in dB, over the whole of it.
        image: The marked picture so far, (1, 3, H, W), detached.
        watermark: On the last iteration, the result.
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
    watermark: Watermark | None = None


def optimise(
    model: DiffusionModel,
    autoencoder: Autoencoder,
    inversion: Inversion,
    image: Tensor,
    extractor: Extractor,
    bits: Tensor,
    settings: Settings,
    *,
    generator: torch.Generator,
    mask: Tensor | None = None,
    original: OriginalBranch | None = None,
) -> Iterator[State]:
    """Optimise the noise of one picture until it carries `bits`.

    Args:
        model: The frozen model that made the inversion.
        autoencoder: Its autoencoder.
        inversion: The inverted picture, from the start sigma on.
        image: The picture at working size, (1, 3, H, W) in [0, 1]; at most as large as the decoded latent, whose upper
            left corner it is compared with.
        extractor: Reads the message.
        bits: (extractor.num_bits,) of 0/1.
        settings: See `Settings`.
        generator: Draws the attacks and the first delta.
        mask: The user's mask, (1, 1, H, W) in [0, 1].
        original: The original branch, where the caller has it already.

    Yields:
        A `State` after each iteration; the last one holds the watermark.

    Raises:
        ValueError: If the number of bits is not the extractor's, or the picture is larger than the decoded latent.
    """
    if bits.shape != (extractor.num_bits,):
        raise ValueError(
            f"the message has {bits.numel()} bits and the extractor {extractor.name!r} reads {extractor.num_bits}"
        )
    if original is None:
        original = original_branch(model, autoencoder, inversion, settings.constraint)
    height, width = image.shape[-2:]
    if height > original.decoded.shape[-2] or width > original.decoded.shape[-1]:
        raise ValueError(
            f"the image is {width}x{height} and the inverted latent decodes to {original.decoded.shape[-1]}x"
            f"{original.decoded.shape[-2]}; encode the same image that is marked"
        )
    decoded_original = original.decoded[..., :height, :width]
    composer = Composer(
        image,
        mode=settings.composition,
        mask=combined_mask(original.mask, mask, (height, width)),
        target_psnr=settings.target_psnr,
        visibility=settings.visibility,
        luma_only=settings.luma_only,
    )

    mix = training_mix(settings.mix, regenerations(model, autoencoder, inversion), extractor.window)
    like = original.decoded if settings.space == "pixel" else original.latent
    if settings.composition == "residual" and settings.space != "pixel":
        delta = warm_start(
            autoencoder, original.decoded, composer, extractor, bits, mix, generator, settings.warm_steps
        ).to(like)
    else:
        delta = (torch.randn(like.shape, generator=generator) * INITIAL_DELTA).to(like)
    delta.requires_grad_()
    optimiser = torch.optim.AdamW([delta], settings.learning_rate, eps=EPSILON, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimiser, settings.iterations, eta_min=settings.learning_rate * FINAL_RATE
    )
    expected = bits.to(like.device).bool()

    def differentiated(checkpointing: bool) -> tuple[Tensor, dict[str, float], list[float]]:
        """Leave the loss's gradient in `delta`; the marked picture, its figures and the accuracy under each attack."""
        optimiser.zero_grad()
        _, decoded, attention_loss = marked_branch(
            model, autoencoder, inversion, delta, original, space=settings.space, checkpointing=checkpointing
        )
        decoded = decoded[..., :height, :width]
        marked = composer(decoded, decoded_original)
        losses, accuracy = [], []
        for attack in mix.draw(generator, settings.attacks):
            attacked = attack(marked, generator)
            attack_loss, logits = extractor.loss_and_logits(attacked.images, bits, attacked.geometry)
            losses.append(attack_loss.mean())
            accuracy.append(((logits > 0) == expected).float().mean().item())
        message_loss = torch.stack(losses).mean()
        image_loss = (decoded - image).square().mean() if settings.composition == "mask" else message_loss.new_zeros(())
        loss = (
            settings.message_weight * message_loss
            + settings.image_weight * image_loss
            + settings.attention_weight * attention_loss
        )
        loss.backward()
        figures = {
            "loss": loss.item(),
            "message_loss": message_loss.item(),
            "image_loss": image_loss.item(),
            "attention_loss": attention_loss.item(),
            "bit_accuracy": sum(accuracy) / len(accuracy),
            "psnr": float(psnr(marked.detach(), image)),
        }
        return marked.detach(), figures, accuracy

    history: list[dict] = []
    held, checkpointing = 0, settings.checkpointing
    for iteration in range(1, settings.iterations + 1):
        before, result = generator.get_state(), None
        try:
            result = differentiated(checkpointing)
        except torch.cuda.OutOfMemoryError:
            if checkpointing:
                raise
            log.warning("the GPU's memory does not hold all activations; they are computed again, which takes longer")
        if result is None:  # not in the handler, which keeps what the failed attempt has allocated
            checkpointing = True
            generator.set_state(before)
            result = differentiated(checkpointing)
        marked, figures, accuracy = result
        delta.grad /= delta.grad.square().mean().sqrt().clamp(min=TINY)
        held = held + 1 if min(accuracy) == 1 else 0
        done = iteration == settings.iterations or held >= settings.patience
        history.append(figures)
        if not done:
            optimiser.step()
            schedule.step()
        watermark = None
        if done:
            report = {"iterations": iteration, "history": history}
            watermark = Watermark(inversion, delta.detach().clone(), mask, bits, settings, report)
        yield State(iteration, settings.iterations, image=marked, watermark=watermark, **figures)
        if done:
            return


def combined_mask(pseudo: Tensor | None, user: Tensor | None, size: tuple[int, int]) -> Tensor | None:
    """Product of the pseudo-mask (at latent size) and the user's mask, at `size`; None where neither is given."""
    masks = [m for m in (pseudo, user) if m is not None]
    if not masks:
        return None
    product = torch.ones(1, 1, *size)
    for m in masks:
        m = torch.nn.functional.interpolate(m.float().cpu(), size=size, mode="bilinear", align_corners=False)
        product = product * m.clamp(0, 1)
    return product
