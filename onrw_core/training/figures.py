"""Figures of the embedded model's parts on captioned photos that were not used for training.

Autoencoder: PSNR and SSIM of reconstructions. UNet: mean squared error of the predicted noise per sigma; the round trip
of inversion and sampling at guidance 1, and what guidance 4.5 does to it (the gap that null-text inversion is there to
close). Samples: how often a classifier of the training photos' captions finds what the caption says.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..diffusion.model import Autoencoder
from ..imaging.metrics import psnr, ssim
from ..mini.adapter import Mini
from ..stages.inversion import invert, replay
from ..stages.progress import result_of
from .classifier import CaptionClassifier
from .data import read_square
from .sampling import sample

__all__ = ["ROUND_TRIPS", "autoencoder_figures", "noise_errors", "round_trip", "sample_figures"]

SIGMAS = (0.04, 0.1, 0.3, 1.0, 3.0, 8.0, 14.0)
GUIDANCE = 4.5
WORKING_SIZE = 256
ROUND_TRIPS = (("ddim", 20), ("ddim", 50), ("fixed-point", 20))
SAMPLES_AT_ONCE = 8

Entries = Sequence[tuple[Path, str]]


@torch.no_grad()
def autoencoder_figures(autoencoder: Autoencoder, paths: Iterable[Path], side: int) -> dict[str, float]:
    """Mean and worst PSNR in dB, mean SSIM of the reconstructions at one size."""
    quality, similarity = [], []
    for path in paths:
        image = read_square(path, side)
        again = autoencoder.decode(autoencoder.encode(image)).clamp(0, 1)
        quality.append(psnr(again, image))
        similarity.append(float(ssim(again, image)))
    return {"psnr": float(np.mean(quality)), "psnr_worst": min(quality), "ssim": float(np.mean(similarity))}


@torch.no_grad()
def noise_errors(mini: Mini, entries: Entries, seed: int = 0) -> dict[str, float]:
    """Mean squared error of the predicted noise (1: as good as predicting zero) by sigma, at guidance 1."""
    generator = torch.Generator().manual_seed(seed)
    errors: dict[float, list[float]] = {sigma: [] for sigma in SIGMAS}
    for path, caption in entries:
        latent, prompt = mini.autoencoder.encode(read_square(path, WORKING_SIZE)), mini.encode(caption)
        for sigma in SIGMAS:
            noise = torch.randn(latent.shape, generator=generator)
            noisy = latent + sigma * noise
            (clean,), _ = mini.model.denoise(noisy, torch.tensor(sigma), [prompt])
            errors[sigma].append(float(((noisy - clean) / sigma - noise).square().mean()))
    return {f"{sigma:g}": float(np.mean(values)) for sigma, values in errors.items()}


@torch.no_grad()
def round_trip(mini: Mini, entries: Entries, method: str, steps: int) -> dict[str, float]:
    """Inversion at guidance 1, sampled back at guidance 1 and at `GUIDANCE`.

    Latent PSNR is relative to the range of the latent; decoded PSNR is against the reconstruction without any step.
    """
    figures: dict[str, list[float]] = {
        name: [] for name in ("latent_1", "decoded_1", "latent_guided", "decoded_guided")
    }
    for path, caption in entries:
        latent = mini.autoencoder.encode(read_square(path, WORKING_SIZE))
        reconstruction = mini.autoencoder.decode(latent).clamp(0, 1)
        states = invert(mini.model, latent, mini.encode(caption), mini.encode(""), steps=steps, method=method)
        record = result_of(states)
        span = float(latent.max() - latent.min())
        for name, guidance in (("1", 1.0), ("guided", GUIDANCE)):
            back = result_of(replay(mini.model, record, guidance=guidance))
            error = float((back - latent).square().mean())
            figures[f"latent_{name}"].append(10 * math.log10(span**2 / error))
            figures[f"decoded_{name}"].append(psnr(mini.autoencoder.decode(back).clamp(0, 1), reconstruction))
    return {name: float(np.mean(values)) for name, values in figures.items()}


def sample_figures(
    mini: Mini, classifier: CaptionClassifier, *, each: int, guidance: float, steps: int = 20
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Samples of every caption that the classifier knows, and how many it recognises.

    The UNet runs in the precision that it was trained in (bfloat16 autocast).

    Args:
        mini: The model.
        classifier: Of the training photos.
        each: Samples of each caption.
        guidance: Classifier-free guidance.
        steps: Steps of the sampler.

    Returns:
        ``top1`` and ``top5`` (shares), ``samples``, ``classes``, ``guidance``, ``steps``; and the first sample of each
        caption, (3,256,256).
    """
    captions = classifier.captions * each
    ranks, samples = [], {}
    for first in range(0, len(captions), SAMPLES_AT_ONCE):
        some = captions[first : first + SAMPLES_AT_ONCE]
        with torch.autocast("cpu", torch.bfloat16):
            images = sample(mini, some, size=WORKING_SIZE, steps=steps, guidance=guidance, seed=first)
        ranks.append(classifier.ranks(images.float(), some))
        for caption, image in zip(some, images, strict=True):
            samples.setdefault(caption, image.float())
    rank = torch.cat(ranks)
    return {
        "top1": (rank < 1).float().mean().item(),
        "top5": (rank < 5).float().mean().item(),
        "samples": len(captions),
        "classes": len(classifier.captions),
        "guidance": guidance,
        "steps": steps,
    }, samples
