"""``onrw attack``: apply attacks (crop, rotation, JPEG, ...) to photos."""

from __future__ import annotations

import argparse
from pathlib import Path

from .common import add_overwrite, number, run_batch
from .folders import plan
from .output import say

__all__ = ["add_arguments", "run"]


class List(argparse.Action):
    """--list: the attacks with their strengths."""

    def __call__(self, parser, *_):
        from ..attacks import ATTACKS

        for name, kind in ATTACKS.items():
            strength = f"={kind.default:g} ({kind.low:g} to {kind.high:g}, {kind.unit})" if kind.unit else ""
            say(f"{name}{strength}")
            say(f"    {kind.description}")
        parser.exit()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="+", metavar="IN", help="photos, or folders of them")
    parser.add_argument("-o", "--output", metavar="OUT|DIR", required=True, help="result, or a folder for PNG files")
    parser.add_argument(
        "--attack",
        action="append",
        required=True,
        metavar="NAME[=STRENGTH]",
        help="an attack; may be given several times, applied in this order",
    )
    parser.add_argument("--list", action=List, nargs=0, help="list the attacks and their strengths")
    parser.add_argument(
        "--seed", type=number(int, 0, 2**53), default=0, metavar="S", help="seed of the random draws (default: 0)"
    )
    add_overwrite(parser)


def run(arguments: argparse.Namespace) -> int:
    planned = plan(arguments.inputs, arguments.output, arguments.overwrite, suffix=".png")

    import torch

    from ..attacks import chain, parse
    from ..imaging import files as images

    attack = chain([parse(text) for text in arguments.attack])

    def apply(job: tuple[Path, Path], place: str) -> None:
        source, result = job
        attacked = attack(images.load(source).rgb[None], torch.Generator().manual_seed(arguments.seed)).images[0]
        images.save(result, attacked, overwrite=arguments.overwrite)
        say(f"{place}{source} -> {result}: {attack}, {attacked.shape[-1]}x{attacked.shape[-2]}")

    return run_batch(planned.jobs, apply, name=lambda job: job[0], refused=planned.refused)
