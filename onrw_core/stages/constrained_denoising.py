"""Constrained denoising: the marked branch and the original branch (arXiv 2601.17388, sec. 3).

The original branch is the replay of the inversion without a change. Its latent, its image, its self-attention and its
pseudo-mask are computed once. The marked branch starts from the changed noise, takes the same steps with the same null
embeddings, and is constrained to the original's self-attention by a loss (default) or by injecting the original's maps.
"""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..diffusion.attention import pseudo_mask, record_rule, self_attention_loss, sharpened
from ..diffusion.model import AttentionControl, AttentionMaps, Autoencoder, DiffusionModel
from ..diffusion.ode import latent_scale
from ..imaging.geometry import size_of
from .inversion import replay_step
from .inversion_record import Inversion

__all__ = [
    "SPACES",
    "Constraint",
    "OriginalBranch",
    "Replayed",
    "denoise",
    "marked_branch",
    "original_branch",
    "perturbed",
    "replay_original",
]


log = logging.getLogger(__name__)
SPACES = ("noise", "latent", "pixel")
HARD_THRESHOLD = 0.5  # of the soft pseudo-mask, which spans [0, 1]


@dataclass(frozen=True)
class Constraint:
    """The constraints, which determine the maps to record of the original branch.

    Attributes:
        attention: Constrain the marked branch to the original's self-attention by a loss.
        inject: Replace the marked branch's self-attention by the original's. Keeps every head of every map in main
            memory, which grows with the number of steps.
        mask: "none", or a "soft" or "hard" pseudo-mask from the prompt's cross-attention.
    """

    attention: bool = False
    inject: bool = False
    mask: str = "none"

    def __post_init__(self) -> None:
        if self.mask not in ("none", "soft", "hard"):
            raise ValueError(f"mask is {self.mask!r}; choose none, soft or hard")

    def possible(self, model: DiffusionModel) -> Constraint:
        """The part of the constraints that a model's maps allow; what is left out is logged.

        Raises:
            ValueError: Injection into a model whose attention cannot be read.
        """
        if model.maps == "attention":
            return self
        if self.inject:
            raise ValueError(
                f"attention: the self-attention of {model.name} cannot be read, so none can be injected; choose replay"
            )
        if self.mask != "none":
            log.warning("%s: its cross-attention cannot be read; there is no pseudo-mask", model.name)
        if self.attention and model.maps == "none":
            log.warning("%s: its attention cannot be read; there is no self-attention constraint", model.name)
        return Constraint(attention=self.attention and model.maps == "features")


@dataclass(frozen=True)
class Replayed:
    """The results of the unchanged replay.

    Attributes:
        latent: Clean latent, (1, C, h, w).
        reference: The head-averaged self-attention of each step (see `Constraint.attention`), or empty.
        inject: The maps to inject in each step, or empty.
        mask: Pseudo-mask (1, 1, h, w) in [0, 1], or None.
        factor: Pixels per latent position and side.
    """

    latent: Tensor
    reference: list[AttentionMaps]
    inject: list[AttentionMaps]
    mask: Tensor | None
    factor: int = 8

    def control(self, step: int) -> AttentionControl | None:
        """The attention maps that a step of the marked branch records and replaces; None for no maps."""
        if not self.reference and not self.inject:
            return None
        rule = record_rule(size_of(self.latent), self.factor)
        return AttentionControl(
            lambda kind, tokens: bool(self.reference) and kind == "self" and rule(kind, tokens),
            self.inject[step] if self.inject else None,
            mean=True,
        )


@dataclass(frozen=True)
class OriginalBranch(Replayed):
    """The unchanged replay and its image.

    Attributes:
        decoded: (1, 3, factor * h, factor * w), not clamped.
    """

    decoded: Tensor = field(kw_only=True)


def perturbed(inversion: Inversion, delta: Tensor) -> Tensor:
    """The inverted noise plus `delta`, which is given in the latent's unit-variance scale.

    Args:
        inversion: The inversion of the noise.
        delta: (1, C, h, w).
    """
    return inversion.latents[0] + delta * latent_scale(inversion.sigmas[0]).to(delta)


def original_branch(
    model: DiffusionModel, autoencoder: Autoencoder, inversion: Inversion, constraint: Constraint
) -> OriginalBranch:
    """The original branch, decoded; see `replay_original`."""
    replayed = replay_original(model, inversion, constraint)
    with torch.no_grad():
        return OriginalBranch(**vars(replayed), decoded=autoencoder.decode(replayed.latent))


def replay_original(model: DiffusionModel, inversion: Inversion, constraint: Constraint) -> Replayed:
    """Replay the inversion unchanged and record the maps that the constraints need.

    Args:
        model: The model that made the inversion.
        inversion: Where to start, the steps to take and their null embeddings.
        constraint: The constraints, which determine the maps to record.

    Raises:
        ValueError: A pseudo-mask is requested, and the model has no cross-attention at its size.
    """
    x = inversion.latents[0]
    size = size_of(x)
    rule = record_rule(size, model.factor)
    constraint = constraint.possible(model)
    reference, inject, masks = [], [], []
    masked = constraint.mask != "none"

    def record(kind: str, tokens: int) -> bool:
        wanted = masked or (kind == "self" and (constraint.attention or constraint.inject))
        return wanted and rule(kind, tokens)

    with torch.no_grad():
        for i in range(inversion.steps):
            control = AttentionControl(record, mean=not constraint.inject)
            x, maps = replay_step(model, inversion, i, x, control=control)
            if constraint.attention:
                reference.append(_reference(maps))
            if constraint.inject:
                kept = {layer: attention.cpu() for layer, attention in maps.self_attention.items()}
                inject.append(AttentionMaps(kept, {}, maps.sizes))
            if masked:
                masks.append(pseudo_mask(maps, inversion.positive, size))
        mask = None
        if masked:
            # Attention depends less on the image the higher the noise: weights are the image's share of the variance.
            share = 1 / (1 + inversion.sigmas[:-1, None, None, None, None].to(x.device) ** 2)
            mask = sharpened((torch.stack(masks) * share).sum(0) / share.sum())
            if constraint.mask == "hard":
                mask = (mask > HARD_THRESHOLD).to(mask)
        return Replayed(x, reference, inject, mask, model.factor)


def denoise(
    model: DiffusionModel, inversion: Inversion, x: Tensor, original: Replayed, *, checkpointing: bool = False
) -> tuple[Tensor, Tensor]:
    """Denoise changed noise under the constraints of the original branch.

    Args:
        model: The model that made the inversion.
        inversion: Steps and null embeddings.
        x: Changed noise at the inversion's start sigma, (1, C, h, w).
        original: The recorded original branch.
        checkpointing: Recompute each step in the backward pass, so that memory does not grow with the steps.

    Returns:
        The clean latent, and the self-attention loss averaged over the steps (a scalar, zero without a reference).
    """

    def step(x: Tensor, i: int) -> tuple[Tensor, Tensor]:
        with model.recomputing() if checkpointing else nullcontext():
            x, maps = replay_step(model, inversion, i, x, control=original.control(i))
        if not original.reference:
            return x, x.new_zeros(())
        return x, self_attention_loss(maps, original.reference[i])

    losses = []
    for i in range(inversion.steps):
        x, loss = checkpoint(step, x, i, use_reentrant=False) if checkpointing else step(x, i)
        losses.append(loss)
    return x, torch.stack(losses).mean()


def marked_branch(
    model: DiffusionModel,
    autoencoder: Autoencoder,
    inversion: Inversion,
    delta: Tensor,
    original: OriginalBranch,
    *,
    space: str = "noise",
    checkpointing: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The latent and the image of a change of the noise.

    The other spaces are for comparison: "latent" changes the clean latent and "pixel" the image, both without the UNet.

    Args:
        model: The model that made the inversion.
        autoencoder: Its autoencoder.
        inversion: Where the noise comes from.
        delta: The change, shaped like the latent (like the decoded image in pixel space).
        original: The recorded original branch.
        space: One of `SPACES`.
        checkpointing: Recompute steps and decoding in the backward pass.

    Returns:
        Clean latent (the original's in pixel space), decoded image (not clamped), self-attention loss.
    """
    if space == "pixel":
        return original.latent, original.decoded + delta, delta.new_zeros(())
    if space == "latent":
        latent, attention_loss = original.latent + delta, delta.new_zeros(())
    else:
        x = perturbed(inversion, delta)
        latent, attention_loss = denoise(model, inversion, x, original, checkpointing=checkpointing)
    if checkpointing:
        return latent, autoencoder.decode_checkpointed(latent), attention_loss
    return latent, autoencoder.decode(latent), attention_loss


def _reference(maps: AttentionMaps) -> AttentionMaps:
    """Self-attention averaged over heads, since the constraint does not distinguish between heads.

    In half precision and in main memory, so that GPU memory does not grow with the number of steps.
    """
    mean = {k: v.mean(1, keepdim=True).half().cpu() for k, v in maps.self_attention.items()}
    return AttentionMaps(mean, {}, maps.sizes)
