"""Figures of the embedded model on captioned photos it never saw, for its model card.

Autoencoder: PSNR and SSIM of reconstructions at 256 and 512 px. UNet: mean squared error of the predicted noise per
sigma; the round trip of inversion and sampling at guidance 1, and what guidance 4.5 does to it (the gap that null-text
inversion is there to close).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..inversion import invert, replay, run
from ..metrics import psnr, ssim
from .adapter import Mini, load_mini
from .data import read_captions

__all__ = ["autoencoder_figures", "evaluate", "fill_card", "markdown", "noise_errors", "round_trips"]

SIGMAS = (0.04, 0.1, 0.3, 1.0, 3.0, 8.0, 14.0)
STEPS = 20
GUIDANCE = 4.5
WORKING_SIZE = 256
CARD_BEGIN, CARD_END = "<!-- figures -->", "<!-- end of figures -->"


def read_square(path: Path, side: int) -> Tensor:
    """The picture's central square, resized: (1,3,side,side) in [0,1]."""
    with Image.open(path) as image:
        picture = image.convert("RGB")
    short = min(picture.size)
    left, top = (picture.width - short) // 2, (picture.height - short) // 2
    square = picture.resize((side, side), Image.Resampling.LANCZOS, box=(left, top, left + short, top + short))
    return torch.from_numpy(np.asarray(square).copy()).permute(2, 0, 1)[None].float() / 255


@torch.no_grad()
def autoencoder_figures(mini: Mini, paths: Iterable[Path], side: int) -> dict[str, float]:
    """Mean and worst PSNR in dB, mean SSIM of the reconstructions at one size."""
    quality, similarity = [], []
    for path in paths:
        image = read_square(path, side)
        again = mini.autoencoder.decode(mini.autoencoder.encode(image)).clamp(0, 1)
        quality.append(psnr(again, image))
        similarity.append(float(ssim(again, image)))
    return {"psnr": float(np.mean(quality)), "psnr_worst": min(quality), "ssim": float(np.mean(similarity))}


@torch.no_grad()
def noise_errors(mini: Mini, entries: Iterable[tuple[Path, str]], seed: int = 0) -> dict[float, float]:
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
    return {sigma: float(np.mean(values)) for sigma, values in errors.items()}


@torch.no_grad()
def round_trips(mini: Mini, entries: Iterable[tuple[Path, str]]) -> dict[str, float]:
    """Inversion at guidance 1 in 20 steps, sampled back at guidance 1 and at 4.5.

    Latent PSNR is relative to the range of the latent; decoded PSNR is against the reconstruction without any step.
    """
    figures: dict[str, list[float]] = {
        name: [] for name in ("latent_1", "decoded_1", "latent_guided", "decoded_guided")
    }
    for path, caption in entries:
        latent = mini.autoencoder.encode(read_square(path, WORKING_SIZE))
        reconstruction = mini.autoencoder.decode(latent).clamp(0, 1)
        record = run(invert(mini.model, latent, mini.encode(caption), mini.encode(""), steps=STEPS))
        span = float(latent.max() - latent.min())
        for name, guidance in (("1", 1.0), ("guided", GUIDANCE)):
            *_, (_, back) = replay(mini.model, record, guidance=guidance)
            error = float((back - latent).square().mean())
            figures[f"latent_{name}"].append(10 * math.log10(span**2 / error))
            figures[f"decoded_{name}"].append(psnr(mini.autoencoder.decode(back).clamp(0, 1), reconstruction))
    return {name: float(np.mean(values)) for name, values in figures.items()}


def evaluate(mini: Mini, photos: Path, limit: int | None = None) -> dict[str, Any]:
    """All figures on a folder of captioned photos (``limit``: the first so many for the UNet's)."""
    entries = read_captions(photos)
    paths = [path for path, _ in entries]
    return {
        "model": mini.model.name,
        "autoencoder": mini.autoencoder.name,
        "photos": len(entries),
        "photos_unet": len(entries[:limit]),
        "autoencoder_256": autoencoder_figures(mini, paths, 256),
        "autoencoder_512": autoencoder_figures(mini, paths, 512),
        "noise_error": {f"{sigma:g}": error for sigma, error in noise_errors(mini, entries[:limit]).items()},
        "round_trip": round_trips(mini, entries[:limit]),
    }


def markdown(figures: dict[str, Any]) -> str:
    """The figures as the section of the model card."""
    small, large, trip = figures["autoencoder_256"], figures["autoencoder_512"], figures["round_trip"]
    sigmas = figures["noise_error"]
    return "\n".join(
        [
            f"`{figures['model']}` with `{figures['autoencoder']}`, {figures['photos']} photos "
            f"({figures['photos_unet']} for the UNet).",
            "",
            "| autoencoder | mean PSNR | worst PSNR | mean SSIM |",
            "| --- | --- | --- | --- |",
            *(
                f"| {side} px | {row['psnr']:.2f} dB | {row['psnr_worst']:.2f} dB | {row['ssim']:.3f} |"
                for side, row in ((256, small), (512, large))
            ),
            "",
            "| sigma | " + " | ".join(sigmas) + " |",
            "| --- |" + " --- |" * len(sigmas),
            "| mean squared error of the predicted noise | " + " | ".join(f"{e:.3f}" for e in sigmas.values()) + " |",
            "",
            f"Inversion at guidance 1 and sampling back, {STEPS} steps, 256 px:",
            "",
            "| sampled at guidance | latent PSNR (of its range) | decoded PSNR (of the reconstruction) |",
            "| --- | --- | --- |",
            f"| 1 | {trip['latent_1']:.1f} dB | {trip['decoded_1']:.1f} dB |",
            f"| {GUIDANCE} | {trip['latent_guided']:.1f} dB | {trip['decoded_guided']:.1f} dB |",
        ]
    )


def fill_card(card: Path, section: str) -> None:
    """Replace what stands between the markers in a model card.

    Raises:
        ValueError: the card has no markers.
    """
    head, begin, rest = card.read_text(encoding="utf-8").partition(CARD_BEGIN)
    _, end, tail = rest.partition(CARD_END)
    if not begin or not end:
        raise ValueError(f"{card} has no lines {CARD_BEGIN} and {CARD_END}; put them where the figures belong")
    card.write_text(f"{head}{begin}\n{section}\n{end}{tail}", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m onrw_core.mini.evaluate",
        description="Figures of the embedded model on captioned photos, as JSON.",
        epilog="example: python -m onrw_core.mini.evaluate --photos held_out --limit 12",
    )
    parser.add_argument("--photos", type=Path, required=True, help="folder with photos and captions.tsv")
    parser.add_argument("--weights", type=Path, help="folder of the weight files (default: the package's)")
    parser.add_argument("--limit", type=int, help="photos for the UNet's figures (default: all)")
    parser.add_argument("--card", type=Path, help="model card whose figures to replace")
    args = parser.parse_args()
    figures = evaluate(load_mini(weights=args.weights), args.photos, args.limit)
    print(json.dumps(figures, indent=2))
    if args.card:
        fill_card(args.card, markdown(figures))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
