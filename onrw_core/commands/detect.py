"""``onrw detect``: the public layer of watermarks, which is read without a key."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .common import add_fpr, p_value, run_batch
from .folders import expand
from .output import json_line, say

if TYPE_CHECKING:
    from ..extractors.reading import Detection

__all__ = ["MEANINGS", "add_arguments", "run", "sentence"]

MEANINGS = {
    "none": "none",
    "trainedAlgorithmicMedia": "AI-generated (trainedAlgorithmicMedia)",
    "compositeWithTrainedAlgorithmicMedia": "partly AI-generated (compositeWithTrainedAlgorithmicMedia)",
    "digitalCapture": "photograph (digitalCapture)",
    "digitalCreation": "digital creation (digitalCreation)",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="+", metavar="IN", help="photos, or folders of them")
    add_fpr(parser)
    parser.add_argument("--plain", action="store_true", help="read without a search for rotation and scale; faster")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def run(arguments: argparse.Namespace) -> int:
    from ..extractors.keyed.pilot_search import detect
    from ..imaging import files as images

    def work(file: Path, place: str) -> None:
        found = detect(images.load(file).rgb[None], search=not arguments.plain, fpr=arguments.fpr)
        if arguments.json:
            json_line(input=str(file), **found.fields())
        else:
            say(f"{place}{file}: {sentence(found)}")

    return run_batch(expand(arguments.inputs), work, name=lambda file: file)


def sentence(found: Detection) -> str:
    """A detection in words."""
    if not found.found:
        return f"no ONRW watermark found ({p_value(found.log10_p)})"
    label = "its label cannot be read" if found.label is None else f"label {MEANINGS[found.label]}"
    return f"carries an ONRW watermark ({p_value(found.log10_p)}), {label}; only its key shows whose it is"
