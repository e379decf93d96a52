"""Refinement of the embedded model's decoder alone: the encoder stays, so that the UNet keeps its latents.

The autoencoder's loss asks for the right colour at each pixel, and answers doubt with a blur. Structural similarity
(Wang et al. 2004) compares local contrast as well; added to the loss (Zhao et al. 2017) it brings back texture that the
latent still tells, at some cost in squared error. Crops are at the photos' own scale and at that of 256 px squares.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..imaging.metrics import ssim
from ..mini.autoencoder import PatchAutoencoder
from .data import PhotoSet
from .loop import Budget, TrainingLog, cosine, descend, save_atomic, step_generator, step_rng
from .train_autoencoder import held_out_squares, reconstruction_loss, reconstruction_psnr

__all__ = ["decoder_parameters", "train_decoder"]

log = logging.getLogger(__name__)
LEARNING_RATE = 4e-4
WARMUP_STEPS = 50
GRADIENT_LIMIT = 0.3
SIMILARITY_WEIGHT = 8.0
LATENT_NOISE = 0.01  # a third of the autoencoder's: more of it teaches the decoder to mistrust fine texture
SIDE = 128
BATCH = 6
SCALED_PART = 0.9  # of the crops: reduced until the photo's shorter side has FEWEST to WORKING_SIZE pixels
FEWEST, WORKING_SIZE = 192, 256  # smaller is as rich in detail as a photo from a better camera at WORKING_SIZE
CHECKPOINT_EVERY = 200


def decoder_parameters(model: PatchAutoencoder) -> list[nn.Parameter]:
    """The parameters that map latents to images, without the scale of the latent."""
    return [*model.linear_decoder.parameters(), *model.decoder_net.parameters()]


def scaled_crops(photos: PhotoSet, rng: np.random.Generator, count: int, side: int) -> Tensor:
    """Random crops of training photos, at their own scale or at that of 256 px: (count,3,side,side) in [0,1]."""
    out = np.empty((count, side, side, 3), np.uint8)
    pool = photos.indices(held_out=False)
    for k in range(count):
        photo = photos.photo(int(rng.choice(pool)))
        short = min(photo.shape[:2])
        scaled = rng.random() < SCALED_PART
        span = side * short // int(rng.integers(FEWEST, WORKING_SIZE + 1)) if scaled else side
        span = min(span, short)
        top = int(rng.integers(photo.shape[0] - span + 1))
        left = int(rng.integers(photo.shape[1] - span + 1))
        crop = photo[top : top + span, left : left + span]
        if span != side:
            crop = np.asarray(Image.fromarray(crop).resize((side, side), Image.Resampling.LANCZOS))
        out[k] = crop[:, ::-1] if rng.random() < 0.5 else crop
    return torch.from_numpy(out).permute(0, 3, 1, 2).float().div_(255.0)


@torch.no_grad()
def similarity(model: nn.Module, images: Tensor) -> float:
    """Mean SSIM of the reconstructions of images (B,3,H,W), after clamping."""
    return float(torch.stack([ssim(model(image[None]).clamp(0, 1), image[None]) for image in images]).mean())


def train_decoder(
    model: PatchAutoencoder, photos: PhotoSet, out: Path, *, seed: int, budget: Budget, device: str
) -> PatchAutoencoder:
    """Refine the decoder of a trained ``model`` (resuming ``out/decoder.pt`` if it is there) and return the model.

    Writes ``decoder.pt`` (checkpoint) and ``decoder.jsonl`` (loss, held-out PSNR and SSIM at 256 px) into ``out``.
    """
    checkpoint, step = out / "decoder.pt", 0
    model.to(device=device, memory_format=torch.channels_last).requires_grad_(False)
    parameters = [parameter.requires_grad_() for parameter in decoder_parameters(model)]
    optimiser = torch.optim.AdamW(parameters, LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    if checkpoint.is_file():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        step = state["step"]
        budget.resume(state["seconds"])
        log.info("decoder: resumed at step %d", step)
    held_out = held_out_squares(photos, WORKING_SIZE, 24).to(device)
    journal = TrainingLog(out / "decoder.jsonl")

    def save() -> None:
        save_atomic(checkpoint, {
            "model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step,
            "seconds": budget.seconds(), "config": model.config,
        })  # fmt: skip
        losses = {key: journal.mean(key) for key in journal.keys()}
        figures = {"psnr": reconstruction_psnr(model, held_out), "ssim": similarity(model, held_out)}
        journal.write(step=step, seconds=budget.seconds(), **losses, **figures)

    if step == 0:
        save()
    with budget.bar("decoder", step) as bar:
        while not budget.spent(step):
            images = scaled_crops(photos, step_rng(seed, step), BATCH, SIDE)
            images = images.to(device, memory_format=torch.channels_last)
            rate = LEARNING_RATE * min(1.0, (step + 1) / WARMUP_STEPS) * cosine(budget.progress(step))
            with torch.no_grad():
                latent = model.encode(images)
                noise = torch.randn(latent.shape, generator=step_generator(seed, step)).to(device)
                latent = latent + LATENT_NOISE * model.latent_scale * noise
            with torch.autocast(device.split(":")[0], torch.bfloat16):
                output = model.decode(latent)
            output = output.float()
            likeness = ssim(output, images).mean()
            loss = reconstruction_loss(output, images) + SIMILARITY_WEIGHT * (1 - likeness)
            descend(optimiser, loss, rate, GRADIENT_LIMIT)
            step += 1
            journal.collect(loss=loss.detach(), likeness=likeness.detach())
            budget.tick(bar, step, journal)
            if step % CHECKPOINT_EVERY == 0:
                save()
    save()
    return model
