"""The probability-flow ODE in sigma space: schedules, the Euler step, and integration in both directions.

With ``x = x0 + sigma * eps`` the ODE is

    dx/dsigma = (x - x0_hat) / sigma

(Karras et al. 2022, eq. 3). One Euler step is exactly the DDIM step with eta 0 (Song et al. 2021, eq. 12). A flow
model, ``y = (1 - s) * x0 + s * eps`` (Lipman et al. 2023), has the same ODE and the same Euler steps in
``x = y / (1 - s)`` and ``sigma = s / (1 - s)``, so backends present it in that form. Inversion is the same step with
ascending sigmas, in two conventions:

- "source": the model is evaluated at the start of the step, at sigma and x;
- "target": the model is evaluated at the sigma of the end of the step, on the latent rescaled to that sigma's variance,
  and its raw output (eps or v) is used as if it were that at the source. This is the inversion of Mokady et al.
  2023 and of diffusers' DDIMInverseScheduler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

__all__ = [
    "CONVENTIONS",
    "MIN_ALPHA_CUMPROD",
    "euler",
    "integrate",
    "inverse_step",
    "latent_scale",
    "schedule",
    "sigmas_from_alphas_cumprod",
]

CONVENTIONS = ("source", "target")

MIN_ALPHA_CUMPROD = 4.9e-8
"""Replaces the 0 at the end of a schedule with zero terminal SNR, whose sigma would be infinite (here: 4518)."""


def sigmas_from_alphas_cumprod(alphas_cumprod: Tensor) -> Tensor:
    """Noise levels ``sqrt((1 - a) / a)`` of a variance-preserving schedule.

    Args:
        alphas_cumprod: Cumulative products of alpha, (T,), descending.

    Returns:
        Ascending sigmas, (T,), float32 on the CPU.
    """
    alphas = alphas_cumprod.detach().double().cpu().clamp(min=MIN_ALPHA_CUMPROD)
    return ((1 - alphas) / alphas).sqrt().float()


def schedule(model_sigmas: Tensor, steps: int, start_sigma: float | None = None) -> Tensor:
    """Descending noise levels with DDIM's trailing spacing (Lin et al. 2024, table 2), ending at sigma_min.

    The levels are equally spaced in training time and rounded to trained levels. Where the range holds fewer trained
    levels than `steps`, they are interpolated in log sigma instead.

    Args:
        model_sigmas: The trained levels, ascending, (T,).
        steps: Number of Euler steps.
        start_sigma: First level; by default the greatest.

    Returns:
        (steps + 1,) float32 on the CPU, from `start_sigma` to the least trained level, never 0.

    Raises:
        ValueError: `steps` below 1, more steps than trained levels, or `start_sigma` outside of the trained range.
    """
    sigmas = model_sigmas.detach().double().cpu()
    if not 1 <= steps <= len(sigmas):
        raise ValueError(f"steps is {steps}; it must lie between 1 and the model's {len(sigmas)} trained levels")
    last = len(sigmas) - 1
    start = float(last)
    if start_sigma is not None:
        low, high = sigmas[0].item(), sigmas[-1].item()
        if not low < start_sigma <= high * (1 + 1e-6):
            raise ValueError(
                f"start_sigma is {start_sigma:g}; choose one above {low:.4g} and up to {high:.4g}, this model's range"
            )
        start = _position(sigmas, start_sigma)
    count = torch.arange(steps + 1, dtype=torch.float64)
    levels = _at(sigmas, ((start + 1) - count * ((start + 1) / steps)).round().clamp(min=1) - 1)
    levels[0] = sigmas[-1] if start_sigma is None else min(start_sigma, sigmas[-1].item())
    if (levels.diff() >= 0).any():
        first = levels[0].clone()
        levels = _at(sigmas, start * (1 - count / steps))
        levels[0] = first
    return levels.float()


def _position(sigmas: Tensor, sigma: float) -> float:
    """Fractional index of `sigma` among ascending `sigmas`, linear in log sigma."""
    logs, value = sigmas.log(), torch.tensor(sigma, dtype=torch.float64).log()
    upper = int(torch.searchsorted(logs, value).clamp(1, len(logs) - 1))
    fraction = (value - logs[upper - 1]) / (logs[upper] - logs[upper - 1])
    return min(upper - 1 + fraction.item(), len(logs) - 1.0)


def _at(sigmas: Tensor, positions: Tensor) -> Tensor:
    """The inverse of `_position`; exact at whole positions."""
    lower = positions.floor().long().clamp(0, len(sigmas) - 1)
    upper = (lower + 1).clamp(max=len(sigmas) - 1)
    fraction = positions - lower
    between = torch.lerp(sigmas[lower].log(), sigmas[upper].log(), fraction).exp()
    return torch.where(fraction > 0, between, sigmas[lower])


def latent_scale(sigma: Tensor | float) -> Tensor:
    """``sqrt(1 + sigma^2)``, the standard deviation of x for x0 and eps of unit variance: the optimiser's scale."""
    return (1 + torch.as_tensor(sigma) ** 2).sqrt()


def euler(x: Tensor, x0: Tensor, sigma: Tensor | float, sigma_next: Tensor | float) -> Tensor:
    """One step of the ODE from `sigma` to `sigma_next`, up or down, given the denoised `x0`; all in float32."""
    return x + ((sigma_next - sigma) / sigma) * (x - x0)


def inverse_step(
    denoise: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    sigma: Tensor,
    sigma_next: Tensor,
    *,
    at: str = "source",
    prediction: str = "eps",
) -> Tensor:
    """One inversion step, towards more noise.

    Args:
        denoise: ``denoise(x, sigma) -> x0_hat``.
        x: Latent at `sigma`, (B, C, h, w).
        sigma: Noise level at the start of the step.
        sigma_next: Noise level at its end.
        at: "source" or "target", where the model is evaluated (see the module).
        prediction: Output of the network: "eps" or "v". It matters to "target" alone.

    Returns:
        The latent at `sigma_next`.

    Raises:
        ValueError: An unknown convention or prediction.
    """
    if at == "source":
        return euler(x, denoise(x, sigma), sigma, sigma_next)
    if at != "target":
        raise ValueError(f"at is {at!r}; choose one of {', '.join(CONVENTIONS)}")
    if prediction not in ("eps", "v"):
        raise ValueError(f'prediction is {prediction!r}; choose one of "eps", "v"')
    scale, scale_next = latent_scale(sigma), latent_scale(sigma_next)
    z = x / scale
    x0 = denoise(z * scale_next, sigma_next)
    if prediction == "eps":
        slope = (z * scale_next - x0) / sigma_next
    else:
        v = (z - scale_next * x0) / sigma_next
        slope = (v + sigma * z) / scale
    return x + (sigma_next - sigma) * slope


def integrate(
    denoise: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    sigmas: Tensor,
    *,
    at: str = "source",
    prediction: str = "eps",
) -> Iterator[tuple[int, Tensor]]:
    """Follow the ODE along `sigmas`, descending (sampling) or ascending (inversion).

    Args:
        denoise: ``denoise(x, sigma) -> x0_hat``.
        x: Latent at ``sigmas[0]``, (B, C, h, w).
        sigmas: (steps + 1,), monotonic; only the last may be 0.
        at: Where the model is evaluated; "target" is for inversion.
        prediction: Output of the network; see `inverse_step`.

    Yields:
        ``(i, x)`` with x at ``sigmas[i]``, for i = 1 ... steps.
    """
    for i in range(len(sigmas) - 1):
        x = inverse_step(denoise, x, sigmas[i], sigmas[i + 1], at=at, prediction=prediction)
        yield i + 1, x
