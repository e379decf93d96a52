"""Training of the embedded model: autoencoder, UNet with text encoder, refinements; an autoencoder for evaluation.

The same function runs on a CPU and on a GPU, resumes from its checkpoints, and leaves weight files, logs and image
sheets in one folder. ``onrw train mini`` calls it.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch

from ..diffusion.fingerprint import fingerprint
from ..mini.autoencoder import PatchAutoencoder
from ..mini.weights import AUTOENCODER_FILE, FOREIGN_FILE, export_module, load_autoencoder, load_text, load_unet
from .data import PhotoSet, load_photos
from .loop import Budget
from .train_autoencoder import train_autoencoder
from .train_decoder import train_decoder
from .train_grounding import train_grounding
from .train_unet import train_unet

__all__ = ["STAGES", "add_arguments", "run", "train"]

log = logging.getLogger(__name__)
STAGES = ("autoencoder", "unet", "all", "decoder", "grounding", "foreign")
STOP_FILE = "STOP"
AUTOENCODER_SHARE = 0.15  # of the budget of stage "all"
# Smaller, with another number of channels and other depths: not the code that the marking went through.
FOREIGN_CONFIG = {
    "latent_channels": 20, "stem": 64, "encoder": 96, "decoder": 96, "head": 48,
    "encoder_blocks": 2, "decoder_blocks": 4, "head_blocks": 1,
}  # fmt: skip
FOREIGN_SEED_OFFSET = 7919


def train(
    photos: Path,
    out: Path,
    *,
    stage: str = "all",
    seed: int = 0,
    steps: int | None = None,
    minutes: float | None = None,
    device: str = "cpu",
) -> None:
    """Train stages of the embedded model; calling again resumes.

    Args:
        photos: Folder with photos and ``captions.tsv`` (file<TAB>caption); shorter sides of 288 px or more.
        out: Folder for checkpoints, logs, sheets, caches and the exported weight files. Creating a file ``STOP`` in it
            ends training cleanly after the running step.
        stage: "autoencoder", "unet", "all" (both); "decoder" and "grounding", which refine what these two left in
            `out`; or "foreign".
        seed: Decides initial weights and every random draw; with ``steps`` as the budget a run is reproducible.
        steps: Budget in optimiser steps (of both together in stage "all").
        minutes: Budget in minutes, counted over all resumptions.
        device: "cpu", or "cuda" (larger batches).

    Raises:
        ValueError: unknown stage, no budget, or no captions.
        FileNotFoundError: photos are missing, or `out` lacks the trained weights that a stage builds on.
    """
    if stage not in STAGES:
        raise ValueError(f"stage is {stage!r}; choose one of {', '.join(STAGES)}")
    out.mkdir(parents=True, exist_ok=True)
    (out / STOP_FILE).unlink(missing_ok=True)
    whole = load_photos(photos, out / "cache")

    def budget(share: float) -> Budget:
        return Budget(round(steps * share) if steps else None, minutes * share if minutes else None, out / STOP_FILE)

    share = AUTOENCODER_SHARE if stage == "all" else 1.0
    if stage in ("autoencoder", "all"):
        _autoencoder(whole, out, "autoencoder", AUTOENCODER_FILE, {}, seed, budget(share), device)
    if stage == "foreign":
        _autoencoder(
            whole, out, "foreign", FOREIGN_FILE, FOREIGN_CONFIG, seed + FOREIGN_SEED_OFFSET, budget(1.0), device
        )
    if stage == "unet" or (stage == "all" and not (out / STOP_FILE).exists()):
        # The exported half-precision weights make the latents, so that the UNet is trained on what users will encode.
        model = load_autoencoder(out, device)
        # A refined decoder leaves the latents as they are.
        encoder = {key: value for key, value in model.state_dict().items() if "decoder" not in key}
        name = fingerprint(encoder, model.config)
        train_unet(
            whole, model, name, out, seed=seed, budget=budget(1 - share if stage == "all" else 1.0), device=device
        )
    if stage == "decoder":
        model = train_decoder(load_autoencoder(out, device), whole, out, seed=seed, budget=budget(1.0), device=device)
        export_module(model, out / AUTOENCODER_FILE, model.config)
    if stage == "grounding":
        tokenizer, text = load_text(out, device)
        train_grounding(
            load_unet(out, device), text, tokenizer, whole, load_autoencoder(out, device), out,
            seed=seed, budget=budget(1.0), device=device,
        )  # fmt: skip


def _autoencoder(
    photos: PhotoSet, out: Path, name: str, file: str, config: dict[str, int], seed: int, budget: Budget, device: str
) -> None:
    torch.manual_seed(seed)
    model = PatchAutoencoder(**config)
    train_autoencoder(model, photos, out, name, seed=seed, budget=budget, device=device)
    export_module(model, out / file, model.config)
    log.info("wrote %s", out / file)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``onrw train mini``."""
    parser.add_argument("--photos", type=Path, required=True, help="folder with photos and captions.tsv")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints, logs, sheets and weights")
    parser.add_argument("--stage", choices=STAGES, default="all", help="what to train (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="decides every random draw (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="budget in optimiser steps")
    parser.add_argument("--minutes", type=float, help="budget in minutes, counted over all resumptions")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all)")


def run(args: argparse.Namespace) -> int:
    """Run ``onrw train mini`` with parsed options."""
    if args.threads:
        torch.set_num_threads(args.threads)
    if not args.steps and not args.minutes:
        args.minutes = 120.0
    train(
        args.photos, args.out, stage=args.stage, seed=args.seed, steps=args.steps, minutes=args.minutes,
        device=args.device,
    )  # fmt: skip
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m onrw_core.training.train",
        description="Train the embedded model.",
        epilog="example: python -m onrw_core.training.train --photos photos --out trained --minutes 120",
    )
    add_arguments(parser)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return run(parser.parse_args())


if __name__ == "__main__":
    raise SystemExit(main())
