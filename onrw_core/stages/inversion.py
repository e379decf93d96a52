"""Inversion: from an image's latent to the noise that samples it, and back under guidance.

Inversion integrates the ODE towards noise at guidance 1 and keeps the latents as pivots. Sampling under guidance
deviates from them; there are four methods:

- "ddim": no correction (Song et al. 2021). Accurate at guidance 1.
- "null-text": for each step i from noise to image, the null embedding is optimised so that the guided step reaches the
  next pivot (Mokady et al. 2023, eq. 3), warm-started from step i - 1:
  ``min over null_i of || euler(x_i, guided(x_i; null_i)) - pivot_{i+1} ||^2``.
- "negative-prompt": the null embedding is the prompt, which cancels guidance at no cost (Miyake et al. 2023).
- "fixed-point": each inversion step is iterated, under the guidance, until the forward step reverses it (Pan et al.
  2023; Garibi et al. 2024): ``x' = x + (sigma' - sigma) * (x' - x0_hat(x')) / sigma'``.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..diffusion.model import AttentionControl, AttentionMaps, Conditioning, DiffusionModel
from ..diffusion.ode import CONVENTIONS, euler, inverse_step, schedule
from .inversion_record import Inversion
from .null_text import optimise_null

__all__ = ["METHODS", "Inversion", "InversionState", "invert", "replay", "replay_step"]

Denoise = Callable[[Tensor, Tensor], Tensor]

METHODS = ("ddim", "null-text", "negative-prompt", "fixed-point")
FIXED_POINT_TOLERANCE = 1e-8
"""Mean squared mismatch of a refined step, in units of the noise, at which the iteration stops."""


@dataclass(frozen=True)
class InversionState:
    """Progress of `invert`.

    Attributes:
        stage: "invert" (towards noise) or "null-text" (towards the image).
        step: Number of completed steps of this stage.
        total: Number of steps of this stage.
        loss: Mean squared mismatch of the step in units of the noise (null-text, fixed-point), else None.
    """

    stage: str
    step: int
    total: int
    loss: float | None = None


@torch.no_grad()
def invert(
    model: DiffusionModel,
    latent: Tensor,
    positive: Conditioning,
    null: Conditioning | None = None,
    *,
    steps: int,
    start_sigma: float | None = None,
    guidance: float = 1.0,
    method: str = "ddim",
    at: str = "source",
    inner_steps: int = 10,
    learning_rate: float = 0.05,
    tolerance: float = 1e-5,
) -> Generator[InversionState, None, Inversion]:
    """Invert `latent` up to `start_sigma`; `result_of` runs it to its end.

    Args:
        model: The diffusion model.
        latent: The image's latent, (1, C, h, w), in the model's scale; taken to be at the model's sigma_min.
        positive: The prompt.
        null: The unconditional embedding; required by every method but "ddim" unless `guidance` is 1.
        steps: Number of Euler steps in each direction.
        start_sigma: Noise level where the inversion ends and sampling starts; default: the model's sigma_max.
        guidance: Guidance of the sampling.
        method: One of `METHODS`.
        at: Where the model is evaluated during inversion, "source" or "target" (see `ode`).
        inner_steps: Adam steps on each null embedding, or iterations of each fixed point.
        learning_rate: Learning rate of Adam, relative to the null embedding's root mean square; decreases linearly to
            half over the steps.
        tolerance: Early stopping of the null-text inner loop: mean squared mismatch in units of the noise. It grows by
            twice this from step to step, since late steps matter less (as in Mokady et al.).

    Yields:
        A state for each step.

    Returns:
        The inversion record.

    Raises:
        ValueError: An unknown method or convention, a method that needs `null` without it, or a bad schedule.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; choose one of {', '.join(METHODS)}")
    if at not in CONVENTIONS:
        raise ValueError(f"at is {at!r}; choose one of {', '.join(CONVENTIONS)}")
    if method == "null-text" and null is None:
        raise ValueError("null-text inversion optimises an unconditional embedding; give null, or use method 'ddim'")
    if method == "null-text" and model.distilled:
        raise ValueError(
            f"method: {model.name} is distilled and has no unconditional branch, which null-text optimises; choose "
            "fixed-point"
        )
    sigmas = schedule(model.sigmas, steps, start_sigma).to(latent.device)
    if method == "negative-prompt":
        null = positive

    def plain(x: Tensor, sigma: Tensor) -> Tensor:
        return model.denoise(x, sigma, [positive])[0][0]

    def guided(x: Tensor, sigma: Tensor) -> Tensor:
        return model.guided(x, sigma, positive, null, guidance)[0]

    pivots = [latent.float()]
    for i in range(steps):
        source, target = sigmas[steps - i], sigmas[steps - i - 1]
        x, loss = inverse_step(plain, pivots[-1], source, target, at=at, prediction=model.prediction), None
        if method == "fixed-point":
            x, loss = _retraced(guided, pivots[-1], x, source, target, inner_steps)
        pivots.append(x)
        yield InversionState("invert", i + 1, steps, loss)
    latents = torch.stack(pivots[::-1])
    del pivots

    embeddings: list[Tensor] = []
    if method == "null-text" and null is not None and guidance != 1:
        x, guess = latents[0], null
        for i in range(steps):
            best, x, loss = optimise_null(
                model,
                x,
                sigmas[i],
                sigmas[i + 1],
                latents[i + 1],
                positive,
                guess,
                guidance,
                inner_steps=inner_steps,
                learning_rate=learning_rate * (1 - i / (2 * steps)),
                tolerance=tolerance * (1 + 2 * i),
            )
            embeddings.append(best)
            guess = null.with_embeddings(best)
            yield InversionState("null-text", i + 1, steps, loss)
    return Inversion(
        latents=latents,
        sigmas=sigmas,
        null_embeddings=torch.cat(embeddings) if embeddings else None,
        positive=positive,
        null=null,
        guidance=guidance,
        method=method,
        model=model.name,
    )


def _retraced(
    denoise: Denoise, x: Tensor, guess: Tensor, sigma: Tensor, sigma_next: Tensor, iterations: int
) -> tuple[Tensor, float]:
    """Refine `guess` at `sigma_next` until the Euler step back to `sigma` reaches `x`.

    Plain iteration diverges where the step is large and the model strongly curved, so the step is halved after each
    iteration that increased the mismatch, and the best guess is returned.

    Returns:
        The latent at `sigma_next`, and the mean squared mismatch of its step back in units of the noise.
    """
    best, best_loss, damping = guess, float("inf"), 1.0
    for _ in range(iterations + 1):
        mismatch = x - euler(guess, denoise(guess, sigma_next), sigma_next, sigma)
        loss = (mismatch.square().mean() / (sigma_next - sigma) ** 2).item()
        if loss < best_loss:
            best, best_mismatch, best_loss = guess, mismatch, loss
        else:
            damping /= 2
        if best_loss < FIXED_POINT_TOLERANCE:
            break
        guess = best + damping * best_mismatch
    return best, best_loss


def replay_step(
    model: DiffusionModel,
    inversion: Inversion,
    step: int,
    x: Tensor,
    *,
    positive: Conditioning | None = None,
    guidance: float | None = None,
    control: AttentionControl | None = None,
) -> tuple[Tensor, AttentionMaps]:
    """One guided step with the null embedding of that step: a pure function, as `torch.utils.checkpoint` needs it.

    Args:
        model: The diffusion model.
        inversion: The record.
        step: The step from ``sigmas[step]`` to ``sigmas[step + 1]``.
        x: Latent at ``sigmas[step]``, (B, C, h, w).
        positive: Replaces the record's prompt.
        guidance: Replaces the record's guidance.
        control: Attention maps to record or to replace.

    Returns:
        The latent at ``sigmas[step + 1]`` and the recorded maps.
    """
    positive = inversion.positive if positive is None else positive
    guidance = inversion.guidance if guidance is None else guidance
    sigma, sigma_next = inversion.sigmas[step].to(x.device), inversion.sigmas[step + 1].to(x.device)
    x0, maps = model.guided(x, sigma, positive, inversion.null_at(step), guidance, control)
    return euler(x, x0, sigma, sigma_next), maps


def replay(
    model: DiffusionModel,
    inversion: Inversion,
    x: Tensor | None = None,
    *,
    positive: Conditioning | None = None,
    guidance: float | None = None,
    control: AttentionControl | None = None,
) -> Generator[tuple[int, Tensor], None, Tensor]:
    """Denoise from the inverted noise, or from another latent, to sigma_min.

    Args:
        model: The model of the inversion.
        inversion: The record.
        x: Latent at the record's start sigma, (B, C, h, w); default: the inverted noise.
        positive: Replaces the record's prompt.
        guidance: Replaces the record's guidance.
        control: Attention maps to replace; recorded maps are returned by `replay_step` alone.

    Yields:
        ``(i, x)`` with x at ``inversion.sigmas[i]``, for i = 1 ... steps.

    Returns:
        The clean latent.

    Raises:
        ValueError: The record was made with another model, or needs a prompt that was not given.
    """
    if inversion.model != model.name:
        raise ValueError(
            f"the inversion was made with the model {inversion.model!r}, not {model.name!r}; "
            "load that model, or invert again with this one"
        )
    for prompt in (positive or inversion.positive, inversion.null):
        if prompt is not None and prompt.incomplete:
            raise ValueError(
                f"the inversion file lacks parts of a prompt ({', '.join(prompt.missing)}); give the conditioning again"
            )
    x = inversion.latents[0] if x is None else x
    for i in range(inversion.steps):
        x, _ = replay_step(model, inversion, i, x, positive=positive, guidance=guidance, control=control)
        yield i + 1, x
    return x
