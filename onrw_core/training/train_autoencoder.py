"""Training of the embedded model's autoencoders: random crops, L1 + gradient L1 + squared error, noise on the latent.

The linear paths start as the principal components of the photos' 8x8 patches, so that training begins at the
quality of the best linear code. The learning rate decays to zero over the budget. Every random draw of step n comes
from (seed, n), so a run that was killed and resumed equals one that was not.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..mini.autoencoder import PatchAutoencoder, principal_patches
from .data import PhotoSet
from .loop import Budget, TrainingLog, cosine, descend, save_atomic, step_generator, step_rng
from .sheets import save_grid

__all__ = ["reconstruction_psnr", "train_autoencoder"]

log = logging.getLogger(__name__)
LEARNING_RATE = 7e-4
WARMUP_STEPS = 100
GRADIENT_LIMIT = 0.3
LATENT_NOISE = 0.03
GRADIENT_WEIGHT = 0.5
SQUARE_WEIGHT = 4.0
PIXELS_PER_BATCH = 24 * 64 * 64
CHECKPOINT_EVERY = 500


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """L1, half the L1 of horizontal and vertical differences, and a squared term for the PSNR."""
    difference = output - target
    gradient = difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
    return difference.abs().mean() + GRADIENT_WEIGHT * gradient + SQUARE_WEIGHT * difference.square().mean()


@torch.no_grad()
def reconstruction_psnr(model: nn.Module, images: Tensor) -> float:
    """Mean PSNR in dB of the reconstructions of images (B,3,H,W), after clamping."""
    errors = [(model(image[None]).clamp(0, 1) - image).square().mean() for image in images]
    return float((-10 * torch.log10(torch.stack(errors))).mean())


def held_out_squares(photos: PhotoSet, side: int, count: int) -> Tensor:
    """Square held-out photos, spread over the list: (count,3,side,side)."""
    pool = photos.indices(held_out=True)
    chosen = pool[np.linspace(0, len(pool) - 1, count).round().astype(int)]
    return torch.stack([photos.square(int(index), side) for index in chosen])


def train_autoencoder(
    model: PatchAutoencoder, photos: PhotoSet, out: Path, name: str, *, seed: int, budget: Budget, device: str
) -> PatchAutoencoder:
    """Train ``model`` (resuming ``out/name.pt`` if it is there) and return it with ``latent_scale`` set.

    Writes ``name.pt`` (checkpoint), ``name.jsonl`` (log) and ``name_*.png`` (reconstruction sheets) into ``out``.
    """
    checkpoint = out / f"{name}.pt"
    model.to(device=device, memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(model.parameters(), LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    step = 0
    if checkpoint.is_file():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        step = state["step"]
        budget.resume(state["seconds"])
        log.info("%s: resumed at step %d", name, step)
    else:
        sample = torch.cat([photos.crops(step_rng(seed, -k - 1), 256, 128) for k in range(4)])
        model.initialise_linear(*(x.to(device) for x in principal_patches(sample, model.config["latent_channels"])))
    held_out = held_out_squares(photos, 256, 24).to(device)
    journal = TrainingLog(out / f"{name}.jsonl")

    def save() -> None:
        save_atomic(checkpoint, {
            "model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step,
            "seconds": budget.seconds(), "config": model.config,
        })  # fmt: skip
        psnr = reconstruction_psnr(model, held_out)
        journal.write(step=step, seconds=budget.seconds(), loss=journal.mean("loss"), psnr=psnr)
        save_grid(out / f"{name}_reconstructions.png", torch.cat([held_out[:6], model(held_out[:6]).detach()]), 6)

    with budget.bar(name, step) as bar:
        while not budget.spent(step):
            rng = step_rng(seed, step)
            side = int(rng.choice([64, 64, 64, 128]))
            images = photos.crops(rng, PIXELS_PER_BATCH // side**2, side).to(device, memory_format=torch.channels_last)
            rate = LEARNING_RATE * min(1.0, (step + 1) / WARMUP_STEPS) * cosine(budget.progress(step))
            latent = model.encode(images)
            noise = torch.randn(latent.shape, generator=step_generator(seed, step)).to(device)
            loss = reconstruction_loss(model.decode(latent + LATENT_NOISE * noise), images)
            descend(optimiser, loss, rate, GRADIENT_LIMIT)
            step += 1
            journal.collect(loss=loss.detach())
            budget.tick(bar, step, journal)
            if step % CHECKPOINT_EVERY == 0:
                save()
    save()
    # Only now: within training the scale decides how strong the noise is, so it must not depend on when one saves.
    set_latent_scale(model, held_out)
    return model


@torch.no_grad()
def set_latent_scale(model: PatchAutoencoder, images: Tensor) -> None:
    """Make the latent of ``images`` have unit variance; decoding undoes it exactly."""
    model.latent_scale.fill_(1.0)
    model.latent_scale.fill_(1.0 / float(torch.cat([model.encode(image[None]) for image in images]).std()))
