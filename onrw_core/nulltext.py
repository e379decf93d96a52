"""Null-text optimisation of one step (Mokady et al. 2023, eq. 3).

Guidance acts as ``x0_null + g * (x0_positive - x0_null)``, and only x0_null depends on the null embedding, so each
inner step costs one evaluation of the null branch, forward and backward. The mismatch is divided by the step in sigma:
it is then the mean squared error of the guided noise, comparable between steps, schedules and models. Adam's step is
relative to the embedding's root mean square, for the same reason.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .model import Conditioning, DiffusionModel
from .ode import euler

__all__ = ["optimise_null"]


def optimise_null(
    model: DiffusionModel,
    x: Tensor,
    sigma: Tensor,
    sigma_next: Tensor,
    pivot: Tensor,
    positive: Conditioning,
    null: Conditioning,
    guidance: float,
    *,
    inner_steps: int,
    learning_rate: float,
    tolerance: float,
) -> tuple[Tensor, Tensor, float]:
    """Optimise the null embedding so that the guided step from `x` lands on `pivot`.

    Args:
        model: The diffusion model.
        x: Latent at `sigma`, (B, C, h, w).
        sigma: Where the step starts.
        sigma_next: Where it ends.
        pivot: Latent wanted at `sigma_next`, (B, C, h, w).
        positive: The prompt.
        null: The null embedding to start from.
        guidance: Guidance, not 1.
        inner_steps: Most Adam steps.
        learning_rate: Of Adam, relative to the embedding's root mean square.
        tolerance: The mean squared mismatch, in units of the noise, that ends the optimisation.

    Returns:
        The best embedding (1, T, C), the latent at `sigma_next` under it, and its mismatch.
    """
    # Nodes run in inference mode, whose tensors autograd refuses: leave it, and copy what comes in.
    with torch.inference_mode(False), torch.enable_grad():
        x, pivot, sigma, sigma_next = (t.detach().clone() for t in (x, pivot, sigma, sigma_next))
        embeddings = null.embeddings.detach().clone().requires_grad_()
        x0_positive = _denoise(model, x, sigma, positive, grad=False)
        rate = learning_rate * embeddings.detach().float().square().mean().sqrt().item()
        optimiser = torch.optim.Adam([embeddings], lr=rate)
        best, best_x, best_loss = null.embeddings, x, float("inf")
        for step in range(inner_steps + 1):
            last = step == inner_steps
            x0_null = _denoise(model, x, sigma, null.with_embeddings(embeddings), grad=not last)
            x_next = euler(x, x0_null + guidance * (x0_positive - x0_null), sigma, sigma_next)
            loss = (x_next - pivot).square().mean() / (sigma_next - sigma) ** 2
            value = loss.item()
            if value < best_loss:
                best, best_x, best_loss = embeddings.detach().clone(), x_next.detach(), value
            if last or value < tolerance:
                break
            optimiser.zero_grad()
            (embeddings.grad,) = torch.autograd.grad(loss, embeddings)
            optimiser.step()
    return best, best_x, best_loss


def _denoise(model: DiffusionModel, x: Tensor, sigma: Tensor, conditioning: Conditioning, grad: bool) -> Tensor:
    with torch.set_grad_enabled(grad):
        return model.denoise(x, sigma, [conditioning])[0][0]
