"""The command `onrw`: parsing, dispatch, exit codes.

Exit codes: 0 done; 1 a batch in which some files failed (the others are done); 2 bad input or usage; 130 interrupted.
Errors go to stderr as one line. Subcommands are modules that are imported only when they are called.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from . import __version__

__all__ = ["build_parser", "main"]

OK, SOME_FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


@dataclass(frozen=True)
class Command:
    """A subcommand.

    Attributes:
        words: How it is called, one or two words.
        module: Module with `add_arguments` and `run`, relative to this package.
        help: One line.
        example: Shown by --help.
    """

    words: tuple[str, ...]
    module: str
    help: str
    example: str


COMMANDS = (
    Command(
        ("key", "new"),
        ".commands.key",
        "make a secret key",
        "onrw key new -o my.key",
    ),
    Command(
        ("embed",),
        ".commands.embed",
        "mark photos",
        "onrw embed photo.jpg -o marked.png --key my.key --text 'Ann 5'\n"
        "  onrw embed holiday/ -o marked/ --key my.key --id c0ffee",
    ),
    Command(
        ("extract",),
        ".commands.extract",
        "read the mark of a photo, whatever was done to it",
        "onrw extract received.jpg --key my.key --json",
    ),
    Command(
        ("attack",),
        ".commands.attack",
        "do to a photo what happens to photos: crop, rotate, compress, ...",
        "onrw attack marked.png -o received.jpg --attack crop=0.5 --attack rotation=10 --attack jpeg=50",
    ),
    Command(
        ("lookup",),
        ".commands.lookup",
        "say what an id stands for",
        "onrw embed photo.jpg -o marked.png --key my.key --registry ids.db --note 'for Ann'\n"
        "  onrw lookup c0ffee --registry ids.db",
    ),
    Command(
        ("convert",),
        ".commands.convert",
        "write another's decoder as safetensors, for --extractor",
        "onrw convert dec_48b.pth -o decoder.safetensors\n"
        "  onrw embed photo.jpg -o marked.png --key my.key --extractor decoder.safetensors",
    ),
    Command(
        ("demo",),
        ".demo",
        "mark a bundled photo, attack it, read it, and draw an overview",
        "onrw demo -o demo",
    ),
    Command(
        ("train", "mini"),
        ".mini.train",
        "train the embedded model",
        "onrw train mini --photos photos --out trained --minutes 120",
    ),
    Command(
        ("bench", "robustness"),
        ".bench.robustness",
        "measure what survives which attack",
        "onrw bench robustness --images photos --out results",
    ),
    Command(
        ("bench", "false-positives"),
        ".bench.false_positives",
        "measure how often unmarked photos are taken for marked ones",
        "onrw bench false-positives --images photos --keys 300 --readings 300000 --out results",
    ),
    Command(
        ("bench", "spaces"),
        ".bench.spaces",
        "compare what can be optimised: pixels, latent, noise",
        "onrw bench spaces --images photos --train others --out results",
    ),
    Command(
        ("bench", "read"),
        ".bench.read",
        "measure how long reading takes",
        "onrw bench read --images photos",
    ),
    Command(
        ("bench", "speed"),
        ".bench.speed",
        "measure time and memory",
        "onrw bench speed",
    ),
    Command(
        ("bench", "memory"),
        ".bench.footprint",
        "work out how much GPU memory Stable Diffusion needs, without a GPU",
        "onrw bench memory --preset paper --steps 10 20",
    ),
    Command(
        ("bench", "nulltext"),
        ".bench.nulltext",
        "measure what null-text inversion gains",
        "onrw bench nulltext --images photos",
    ),
)
GROUPS = {"key": "make keys", "train": "train the embedded model", "bench": "benchmarks"}


def build_parser(words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The parser.

    Args:
        words: The command line. Only the command that it calls gets its arguments, because that imports its module.
    """
    parser = argparse.ArgumentParser(
        prog="onrw",
        description="Invisible watermarks by optimising diffusion inversion noise.",
        epilog="example:\n  onrw key new -o my.key\n  onrw embed photo.jpg -o marked.png --key my.key --text 'Ann 5'\n"
        "  onrw extract marked.png --key my.key",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"onrw {__version__}")
    top = parser.add_subparsers(metavar="COMMAND", required=True)
    groups = {}
    for command in COMMANDS:
        holder = top
        if len(command.words) == 2:
            group = command.words[0]
            if group not in groups:
                inner = top.add_parser(
                    group,
                    help=GROUPS[group],
                    description=GROUPS[group].capitalize() + ".",
                    epilog=f"example:\n  {command.example}",
                    formatter_class=argparse.RawDescriptionHelpFormatter,
                )
                groups[group] = inner.add_subparsers(metavar="COMMAND", required=True)
            holder = groups[group]
        sub = holder.add_parser(
            command.words[-1],
            help=command.help,
            description=command.help[0].upper() + command.help[1:] + ".",
            epilog=f"example:\n  {command.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if tuple(words[: len(command.words)]) == command.words:
            module = importlib.import_module(command.module, __package__)
            module.add_arguments(sub)
            sub.set_defaults(run=module.run, name=" ".join(command.words))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(format="onrw: %(message)s", level=logging.WARNING)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files that the terminal cannot show
    try:
        arguments = build_parser(words).parse_args(words)
        return arguments.run(arguments)
    except KeyboardInterrupt:
        print("onrw: interrupted", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, OSError) as error:
        print(f"onrw: error: {error}", file=sys.stderr)
        return BAD_INPUT
