"""All figures of the embedded model, for its model card: one command, one JSON.

On photos that it never saw: reconstructions, predicted noise, round trips. With the training photos at hand: whether
samples show what their caption says, and whether the pseudo-mask finds the caption's object in photos held out of
training. On request the seconds that its calls take, which mean something on an idle machine only.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import torch

from ..mini.adapter import Mini, MiniAutoencoder, load_mini
from ..mini.weights import FOREIGN_FILE, WEIGHTS, load_autoencoder
from .card import fill_card, markdown
from .classifier import load_classifier
from .data import read_captions
from .figures import ROUND_TRIPS, autoencoder_figures, noise_errors, round_trip, sample_figures
from .masks import mask_figures
from .sheets import save_grid
from .timings import timings

__all__ = ["evaluate", "evaluate_training"]

log = logging.getLogger(__name__)
SIDES = (256, 512)
SHEET_ROWS, SHEET_COLUMNS = 5, 6


def evaluate(
    mini: Mini, photos: Path, foreign: MiniAutoencoder | None = None, limit: int | None = None
) -> dict[str, Any]:
    """Figures on a folder of captioned photos that the model was not trained on.

    Args:
        mini: The model.
        photos: The folder.
        foreign: The other autoencoder.
        limit: Photos for the predicted noise; a quarter as many go through the slow round trips.
    """
    entries = read_captions(photos)
    paths = [path for path, _ in entries]
    some = entries[:limit]
    few = some[: -(-len(some) // 4)]
    autoencoders = {"": mini.autoencoder} | ({"foreign, ": foreign} if foreign else {})
    log.info("reconstructions, predicted noise and round trips")
    return {
        "model": mini.model.name,
        "autoencoder": mini.autoencoder.name,
        "photos": len(entries),
        "photos_unet": len(some),
        "photos_round_trip": len(few),
        "reconstructions": {
            f"{name}{side} px": autoencoder_figures(autoencoder, paths, side)
            for name, autoencoder in autoencoders.items()
            for side in SIDES
        },
        "noise_error": noise_errors(mini, some),
        "round_trips": {
            f"{method}, {steps} steps": round_trip(mini, few, method, steps) for method, steps in ROUND_TRIPS
        },
    }


def evaluate_training(
    mini: Mini, photos: Path, cache: Path, *, each: int, guidance: float, sheet: Path | None = None
) -> dict[str, Any]:
    """Figures that need the training photos.

    Args:
        mini: The model.
        photos: Folder of the training photos.
        cache: File of the classifier's weights; trained in some minutes where it is not there.
        each: Samples of each caption.
        guidance: Of the samples.
        sheet: Image file of 5 x 6 samples to write: the first sample of every second caption, unselected.
    """
    entries = read_captions(photos)
    classifier, judged = load_classifier(entries, cache)
    log.info("samples")
    samples, images = sample_figures(mini, classifier, each=each, guidance=guidance)
    if sheet:
        count = SHEET_ROWS * SHEET_COLUMNS
        shown = list(images)[:: max(1, len(images) // count)][:count]
        save_grid(sheet, torch.stack([images[caption] for caption in shown]), SHEET_COLUMNS)
        samples["shown"] = shown
    log.info("pseudo-masks")
    return {"classifier": judged, "samples": samples, "masks": mask_figures(mini, entries)}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m onrw_core.training.evaluate",
        description="Figures of the embedded model on captioned photos, as JSON.",
        epilog="example: python -m onrw_core.training.evaluate --photos unseen --train-photos trained_on --limit 16",
    )
    parser.add_argument("--photos", type=Path, required=True, help="folder with unseen photos and captions.tsv")
    parser.add_argument("--train-photos", type=Path, help="folder of the training photos: samples and pseudo-masks")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder of the weight files (package's)")
    parser.add_argument("--limit", type=int, help="photos for the predicted noise; a quarter for round trips (all)")
    parser.add_argument("--each", type=int, default=4, help="samples of each caption (default: %(default)s)")
    parser.add_argument("--guidance", type=float, default=4.0, help="of the samples (default: %(default)s)")
    parser.add_argument("--sheet", type=Path, help="image file of 5 x 6 samples to write")
    parser.add_argument(
        "--classifier",
        type=Path,
        default=Path(tempfile.gettempdir()) / "onrw_mini_classifier.pt",
        help="where the classifier of the training photos is kept (default: %(default)s)",
    )
    parser.add_argument("--timings", action="store_true", help="measure seconds too; the machine must be idle")
    parser.add_argument("--threads", type=int, default=2, help="of the timings (default: %(default)s)")
    parser.add_argument("--card", type=Path, help="model card whose figures to replace")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    mini, foreign = load_mini(weights=args.weights), None
    if (args.weights / FOREIGN_FILE).is_file():
        foreign = MiniAutoencoder(load_autoencoder(args.weights, foreign=True))
    figures = evaluate(mini, args.photos, foreign, args.limit)
    if args.train_photos:
        figures |= evaluate_training(
            mini, args.train_photos, args.classifier, each=args.each, guidance=args.guidance, sheet=args.sheet
        )
    if args.timings:
        figures |= {"threads": args.threads, "seconds": timings(mini, args.weights, args.threads)}
    print(json.dumps(figures, indent=2))
    if args.card:
        fill_card(args.card, markdown(figures))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
