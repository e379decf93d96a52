"""The figures of the embedded model as sections of its model card."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["fill_card", "markdown"]

BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)] + [""]


def markdown(figures: dict[str, Any]) -> str:
    """The figures as text and tables; parts that were not measured are left out."""
    lines = [
        f"`{figures['model']}` with `{figures['autoencoder']}`, {figures['photos']} photos "
        f"({figures['photos_unet']} for the predicted noise, {figures['photos_round_trip']} for the round trips).",
        "",
        *table(
            ("autoencoder", "mean PSNR", "worst PSNR", "mean SSIM"),
            (
                (name, f"{row['psnr']:.2f} dB", f"{row['psnr_worst']:.2f} dB", f"{row['ssim']:.3f}")
                for name, row in figures["reconstructions"].items()
            ),
        ),
        *table(
            ("sigma", *figures["noise_error"]),
            [("mean squared error of the predicted noise", *(f"{e:.3f}" for e in figures["noise_error"].values()))],
        ),
        "Inversion at guidance 1 and sampling back, 256 px: PSNR of the latent (of its range) and of the decoded",
        "image (against the reconstruction without any step).",
        "",
        *table(
            ("inversion", "latent, guidance 1", "decoded, guidance 1", "decoded, guidance 4.5", "difference"),
            (
                (
                    name,
                    f"{row['latent_1']:.1f} dB",
                    f"{row['decoded_1']:.1f} dB",
                    f"{row['decoded_guided']:.1f} dB",
                    f"{row['decoded_1'] - row['decoded_guided']:.1f} dB",
                )
                for name, row in figures["round_trips"].items()
            ),
        ),
    ]
    if "samples" in figures:
        row, judge = figures["samples"], figures["classifier"]
        lines += [
            f"Samples: of {row['samples']} ({row['classes']} captions, guidance {row['guidance']:g}, {row['steps']} "
            f"steps, 256 px), a classifier trained on the training photos has the caption first for "
            f"{row['top1']:.0%} and among its first five for {row['top5']:.0%}. Of {judge['held_out']} photos that the "
            f"classifier never saw it finds {judge['top1']:.0%} and {judge['top5']:.0%}; chance is "
            f"{1 / row['classes']:.0%} and {5 / row['classes']:.0%}.",
            "",
        ]
        if "shown" in row:
            lines += [f"The sheet below shows, row by row: {'; '.join(row['shown'])}.", ""]
    if "masks" in figures:
        row = figures["masks"]
        ratios = list(row["ratios"].values())
        lines += [
            f"Pseudo-mask of the object's word on {len(ratios)} photos held out (clothes, boxes marked by hand): its "
            f"mean inside the object is {row['pooled']:.2f} times its mean outside (single photos: mean "
            f"{sum(ratios) / len(ratios):.2f}, median {row['median']:.2f}, "
            f"{min(ratios):.2f} to {max(ratios):.2f}; at least 2 on {sum(r >= 2 for r in ratios)}). With other photos' "
            f"boxes it is {row['other_boxes']:.2f}, with the caption's first word {row['other_word']:.2f}.",
            "",
            *table(("photo", "inside / outside"), ((Path(n).stem, f"{r:.2f}") for n, r in row["ratios"].items())),
        ]
    if "seconds" in figures:
        lines += table(
            ("seconds, the fastest of a few", f"passed, {figures['threads']} threads", "processor time, one thread"),
            ((name, f"{row['wall']:.3f}", f"{row['cpu']:.3f}") for name, row in figures["seconds"].items()),
        )
    return "\n".join(lines).strip()


def fill_card(card: Path, section: str) -> None:
    """Replace the text between the markers in a model card.

    Raises:
        ValueError: the card has no markers.
    """
    head, begin, rest = card.read_text(encoding="utf-8").partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{card} has no lines {BEGIN} and {END}; put them where the figures belong")
    card.write_text(f"{head}{begin}\n{section}\n{end}{tail}", encoding="utf-8")
