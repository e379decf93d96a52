"""Reconstruction error of each inversion method under guidance: ``onrw bench nulltext --images DIR``.

Plain inversion is retraced at guidance 1 up to the error of the Euler steps; under guidance the path drifts. The gap
is the difference of the two latent mean squared errors, and a method is judged by the share of the gap that it closes,
and by the PSNR of the decoded image against the decoded latent that was inverted.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..diffusion.model import Autoencoder, Conditioning, DiffusionModel
from ..stages.inversion import Inversion, invert, replay
from ..stages.progress import result_of
from .photos import Photo, load_photos

__all__ = ["Case", "Row", "add_arguments", "cases", "measure", "run", "table"]


@dataclass(frozen=True)
class Case:
    """An inversion method with its settings."""

    method: str
    at: str = "source"
    inner_steps: int = 0
    learning_rate: float = 0.0
    guidance: float = 1.0

    @property
    def options(self) -> dict:
        names = {"method", "at", "guidance"}
        if self.method in ("null-text", "fixed-point"):
            names.add("inner_steps")
        if self.method == "null-text":
            names.add("learning_rate")
        return {name: value for name, value in asdict(self).items() if name in names}


@dataclass(frozen=True)
class Row:
    """Means over the photos; the gap's share is None for the cases that define it, and without a gap.

    Attributes:
        case: What was done.
        mse: Mean squared error of the retraced latent, latent units squared.
        psnr: Of the decoded latent against the decoded original latent, dB.
        closed: Share of the gap that is closed, by the mean errors.
        worst: The least share of any photo.
        noise: Root mean square of the inverted noise over sigma (1 for a perfect model).
        seconds: Time of the inversion.
    """

    case: Case
    mse: float
    psnr: float
    closed: float | None
    worst: float | None
    noise: float
    seconds: float


def cases(guidance: float, inner_steps: Iterable[int], learning_rates: Iterable[float]) -> list[Case]:
    """Plain inversion and null-text in both conventions, and the alternatives; the plain ones first."""
    plain = [Case("ddim", at, guidance=g) for at in ("source", "target") for g in (1.0, guidance)]
    rates = list(learning_rates)
    tuned = [
        Case("null-text", at, inner, rate, guidance)
        for at in ("source", "target")
        for inner in inner_steps
        for rate in rates
    ]
    others = [Case("negative-prompt", guidance=guidance)]
    others += [Case("fixed-point", "source", inner, guidance=g) for inner in (5, 20) for g in (1.0, guidance)]
    return plain + others + tuned


def _psnr(a: Tensor, b: Tensor) -> float:
    error = (a.clamp(0, 1) - b.clamp(0, 1)).square().mean().clamp(min=1e-12)
    return -10 * error.log10().item()


@torch.no_grad()
def _retraced(model: DiffusionModel, inversion: Inversion) -> Tensor:
    return result_of(replay(model, inversion))


def measure(
    model: DiffusionModel,
    autoencoder: Autoencoder,
    encode: Callable[[str], Conditioning],
    photos: list[Photo],
    tried: list[Case],
    *,
    size: int,
    steps: int,
    start_sigma: float | None = None,
) -> Iterator[Row]:
    """Invert and retrace each photo's central square in each way.

    Args:
        model: The diffusion model.
        autoencoder: Its autoencoder.
        encode: Text to conditioning.
        photos: Photos with a shorter side of `size`, with captions.
        tried: The ways to invert, as `cases` gives them.
        size: Pixels of the square, a multiple of the autoencoder's factor.
        steps: Euler steps in each direction.
        start_sigma: Where the inversions end.

    Yields:
        A row for each case.
    """
    null = encode("")
    latents, decoded = [], []
    with torch.no_grad():
        for photo in photos:
            top, left = ((side - size) // 2 for side in photo.image.shape[-2:])
            latents.append(autoencoder.encode(photo.image[None, :, top : top + size, left : left + size]))
            decoded.append(autoencoder.decode(latents[-1]))
    plain: dict[tuple[str, bool], list[float]] = {}
    for case in tried:
        errors, psnrs, noises, elapsed = [], [], [], 0.0
        for photo, latent, image in zip(photos, latents, decoded, strict=True):
            start = time.perf_counter()
            states = invert(
                model,
                latent,
                encode(photo.prompt),
                null,
                steps=steps,
                start_sigma=start_sigma,
                **case.options,
            )
            inversion = result_of(states)
            elapsed += time.perf_counter() - start
            x = _retraced(model, inversion)
            errors.append((x - latent).square().mean().item())
            with torch.no_grad():
                psnrs.append(_psnr(autoencoder.decode(x), image))
            noises.append((inversion.latents[0] / inversion.start_sigma).square().mean().sqrt().item())
        count = len(photos)
        if case.method == "ddim":
            plain[case.at, case.guidance != 1] = errors
        closed = worst = None
        if case.method != "ddim" and case.guidance != 1 and (case.at, True) in plain:
            floor, drift = plain[case.at, False], plain[case.at, True]
            opened = sum(drift) - sum(floor)
            if opened > 0:
                closed = (sum(drift) - sum(errors)) / opened
                worst = min((d - e) / (d - f) for d, e, f in zip(drift, errors, floor, strict=True) if d > f)
        yield Row(case, sum(errors) / count, sum(psnrs) / count, closed, worst, sum(noises) / count, elapsed / count)


def table(rows: Iterable[Row]) -> Iterator[str]:
    """The rows as lines of a Markdown table."""
    yield "| method | model at | guidance | inner | rate | latent MSE | PSNR dB | gap closed | worst | noise | s |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for row in rows:
        case, shares = row.case, (row.closed, row.worst)
        cells = [case.method, case.at, f"{case.guidance:g}", f"{case.inner_steps or ''}"]
        cells += [
            f"{case.learning_rate:g}" if case.learning_rate else "",
            f"{row.mse:.3g}",
            f"{row.psnr:.1f}",
        ]
        cells += ["" if share is None else f"{share:.1%}" for share in shares]
        yield "| " + " | ".join([*cells, f"{row.noise:.3f}", f"{row.seconds:.1f}"]) + " |"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `run`."""
    parser.add_argument("--images", type=Path, required=True, help="folder of photos, with captions.tsv")
    parser.add_argument("--match", default="*", help="only photos of this pattern")
    parser.add_argument("--limit", type=int, default=4, help="at most so many photos")
    parser.add_argument("--weights", type=Path, help="folder of the embedded model's weights")
    parser.add_argument("--size", type=int, default=256, help="pixels of the square")
    parser.add_argument("--steps", type=int, default=20, help="Euler steps in each direction")
    parser.add_argument("--start-sigma", type=float, help="where the inversions end; default: all noise")
    parser.add_argument("--guidance", type=float, default=4.5, help="guidance under which the path is retraced")
    parser.add_argument("--inner", type=int, nargs="+", default=[5, 10, 20], help="inner steps to try")
    parser.add_argument("--rate", type=float, nargs="+", default=[0.05], help="learning rates to try")
    parser.add_argument("--json", type=Path, help="write the rows to this file as well")


def run(options: argparse.Namespace) -> int:
    """Measure on the embedded model, print a table, and write JSON on request."""
    from ..mini import load_mini  # the benchmark serves other models without it

    mini = load_mini(weights=options.weights)
    photos = load_photos(options.images, options.size, options.match, options.limit)
    measured = measure(
        mini.model,
        mini.autoencoder,
        mini.encode,
        photos,
        cases(options.guidance, options.inner, options.rate),
        size=options.size,
        steps=options.steps,
        start_sigma=options.start_sigma,
    )
    rows = []

    def kept() -> Iterator[Row]:
        for row in measured:
            rows.append(row)
            yield row

    for line in table(kept()):
        print(line, flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
    return 0
