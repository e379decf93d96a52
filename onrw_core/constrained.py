"""Constrained denoising: from noise back to a picture, beside the branch of the original (arXiv 2601.17388, sec. 3).

The original branch is the replay of the inversion without a change. It never changes, so its latent, its picture, its
self-attention and its pseudo-mask are computed once. The marked branch starts from the changed noise, takes the same
steps with the same null embeddings, and is held to the original's self-attention by a loss (default) or, as an option,
by injecting the original's maps.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .attention import pseudo_mask, record_rule, self_attention_loss, sharpened
from .inversion import replay_step
from .model import AttentionControl, AttentionMaps, Autoencoder, DiffusionModel
from .ode import latent_scale
from .trajectory import Inversion

__all__ = ["SPACES", "Constraint", "OriginalBranch", "denoise", "marked_branch", "original_branch", "perturbed"]


SPACES = ("noise", "latent", "pixel")
HARD_THRESHOLD = 0.5  # of the soft pseudo-mask, which spans [0, 1]


@dataclass(frozen=True)
class Constraint:
    """What the original branch has to be recorded for.

    Attributes:
        attention: Hold the marked branch to the original's self-attention by a loss.
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


@dataclass(frozen=True)
class OriginalBranch:
    """What the unchanged replay leaves behind.

    Attributes:
        latent: Clean latent, (1, C, h, w).
        decoded: Its picture, (1, 3, 8h, 8w), not clamped.
        reference: Per step the head-averaged self-attention (see `Constraint.attention`), or empty.
        inject: Per step the maps to inject, or empty.
        mask: Pseudo-mask (1, 1, h, w) in [0, 1], or None.
    """

    latent: Tensor
    decoded: Tensor
    reference: list[AttentionMaps]
    inject: list[AttentionMaps]
    mask: Tensor | None


def perturbed(model: DiffusionModel, inversion: Inversion, delta: Tensor) -> Tensor:
    """The inverted noise plus `delta`, which is given in the latent's unit-variance scale."""
    return inversion.latents[0] + delta * latent_scale(inversion.sigmas[0], model.flow).to(delta)


def original_branch(
    model: DiffusionModel, autoencoder: Autoencoder, inversion: Inversion, constraint: Constraint
) -> OriginalBranch:
    """Replay the inversion unchanged and keep what the marked branch is compared with.

    Args:
        model: The model that made the inversion.
        autoencoder: Its autoencoder.
        inversion: Where to start, the steps to take and their null embeddings.
        constraint: What to record.

    Raises:
        ValueError: If a pseudo-mask is asked for and the model has no cross-attention at the size that carries it.
    """
    x = inversion.latents[0]
    size = tuple(x.shape[-2:])
    rule = record_rule(size)
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
            # Attention knows the less of the picture the more noise it sees: weigh by the picture's share of variance.
            share = 1 / (1 + inversion.sigmas[:-1, None, None, None, None].to(x.device) ** 2)
            mask = sharpened((torch.stack(masks) * share).sum(0) / share.sum())
            if constraint.mask == "hard":
                mask = (mask > HARD_THRESHOLD).to(mask)
        return OriginalBranch(x, autoencoder.decode(x), reference, inject, mask)


def denoise(
    model: DiffusionModel, inversion: Inversion, x: Tensor, original: OriginalBranch, *, checkpointing: bool = False
) -> tuple[Tensor, Tensor]:
    """Take changed noise through the remaining steps under the original's constraints.

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
        rule = record_rule(x.shape[-2:])
        control = None
        if original.reference or original.inject:
            control = AttentionControl(
                lambda kind, tokens: bool(original.reference) and kind == "self" and rule(kind, tokens),
                original.inject[i] if original.inject else None,
                mean=True,
            )
        with model.recomputing() if checkpointing else nullcontext():
            x, maps = replay_step(model, inversion, i, x, control=control)
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
    """The picture that a change of the noise leads to.

    The other spaces are there to be compared with: "latent" changes the clean latent and "pixel" the picture itself,
    so that neither runs the UNet.

    Args:
        model: The model that made the inversion.
        autoencoder: Its autoencoder.
        inversion: Where the noise comes from.
        delta: The change, shaped like the latent (like the decoded picture in pixel space).
        original: The recorded original branch.
        space: One of `SPACES`.
        checkpointing: Recompute steps and decoding in the backward pass.

    Returns:
        Clean latent (the original's in pixel space), decoded picture (not clamped), self-attention loss.
    """
    if space == "pixel":
        return original.latent, original.decoded + delta, delta.new_zeros(())
    if space == "latent":
        latent, attention_loss = original.latent + delta, delta.new_zeros(())
    else:
        x = perturbed(model, inversion, delta)
        latent, attention_loss = denoise(model, inversion, x, original, checkpointing=checkpointing)
    if checkpointing:
        return latent, autoencoder.decode_checkpointed(latent), attention_loss
    return latent, autoencoder.decode(latent), attention_loss


def _reference(maps: AttentionMaps) -> AttentionMaps:
    """Self-attention averaged over heads, since where pixels look matters and not by which head.

    In half precision and in main memory: there is one for each step, and a card's memory must not grow with them.
    """
    mean = {k: v.mean(1, keepdim=True).half().cpu() for k, v in maps.self_attention.items()}
    return AttentionMaps(mean, {}, maps.sizes)
