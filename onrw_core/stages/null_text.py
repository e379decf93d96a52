"""Null-text optimisation of one step (Mokady et al. 2023, eq. 3).

Guidance acts as ``x0_null + g * (x0_positive - x0_null)``, and only x0_null depends on the null embedding, so each
inner step costs one evaluation of the null branch, forward and backward. The mismatch is divided by the step in sigma,
which gives the mean squared error of the guided noise, comparable between steps, schedules and models. For the same
reason, Adam's learning rate is relative to the embedding's root mean square.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..diffusion.model import Conditioning, DiffusionModel
from ..diffusion.ode import euler

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
    """Optimise the null embedding so that the guided step from `x` reaches `pivot`.

    Args:
        model: The diffusion model.
        x: Latent at `sigma`, (B, C, h, w).
        sigma: Noise level at the start of the step.
        sigma_next: Noise level at its end.
        pivot: Target latent at `sigma_next`, (B, C, h, w).
        positive: The prompt.
        null: The initial null embedding.
        guidance: Guidance, not 1.
        inner_steps: Largest number of Adam steps.
        learning_rate: Learning rate of Adam, relative to the embedding's root mean square.
        tolerance: Mean squared mismatch, in units of the noise, at which the optimisation stops.

    Returns:
        The best embedding (1, T, C), its latent at `sigma_next`, and its mismatch.
    """
    # Nodes run in inference mode, whose tensors cannot be used by autograd: leave it and copy the input.
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
