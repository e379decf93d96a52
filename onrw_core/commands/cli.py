"""The command line `onrw`: parsing, dispatch, exit codes.

Exit codes: 0 success; 1 some files of a batch failed (the others are done); 2 bad input or usage; 3 all files are
written, but some watermarks cannot be read; 130 interrupted; 141 nobody reads the output any more (as of ``| head``).
Errors go to stderr as one line. Subcommands are modules that are imported only when they are called.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import NoReturn

from .. import __version__
from ..payload.keys import redacted
from .kept import check_results, sides_of
from .output import LineFormatter, complain, one_line, remark

__all__ = ["build_parser", "main"]

OK, SOME_FAILED, BAD_INPUT, NOT_READABLE, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 3, 130, 141


@dataclass(frozen=True)
class Command:
    """A subcommand.

    Attributes:
        words: Its name on the command line, one or two words.
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
        ".key",
        "make a secret key",
        "onrw key new -o my.key",
    ),
    Command(
        ("embed",),
        ".embed",
        "embed a watermark into photos",
        "onrw embed photo.jpg -o marked.png --key my.key --text 'Ann 5'\n"
        "  onrw embed holiday/ -o marked/ --key my.key --id c0ffee",
    ),
    Command(
        ("extract",),
        ".extract",
        "read the message of photos, for scripts",
        "onrw extract received.jpg --key my.key --json",
    ),
    Command(
        ("detect",),
        ".detect",
        "detect the public layer of watermarks and their label, without a key",
        "onrw detect received.jpg",
    ),
    Command(
        ("verify",),
        ".verify",
        "report for people what is found in an image",
        "onrw verify received.jpg --key my.key --html report.html",
    ),
    Command(
        ("serve",),
        ".serve",
        "open a local page that verifies dropped images",
        "onrw serve --key my.key --registry ids.db",
    ),
    Command(
        ("attack",),
        ".attack",
        "apply attacks to a photo: crop, rotate, compress, ...",
        "onrw attack marked.png -o received.jpg --attack crop=0.5 --attack rotation=10 --attack jpeg=50",
    ),
    Command(
        ("lookup",),
        ".lookup",
        "show the registry's entries of an id",
        "onrw embed photo.jpg -o marked.png --key my.key --registry ids.db --note 'for Ann'\n"
        "  onrw lookup c0ffee --registry ids.db",
    ),
    Command(
        ("c2pa",),
        ".c2pa",
        "write the watermark of a photo as a C2PA soft binding, or sign a manifest with it",
        "onrw c2pa marked.png --key my.key\n"
        "  onrw c2pa marked.png --key my.key -o signed.png --certificate chain.pem --private-key private.pem",
    ),
    Command(
        ("convert",),
        ".convert",
        "convert a third-party decoder to safetensors, for --extractor",
        "onrw convert dec_48b.pth -o decoder.safetensors\n"
        "  onrw embed photo.jpg -o marked.png --key my.key --extractor decoder.safetensors",
    ),
    Command(
        ("demo",),
        ".demo",
        "embed a watermark into a bundled photo, attack it, read it, and draw an overview",
        "onrw demo -o demo",
    ),
    Command(
        ("train", "mini"),
        "..training.train",
        "train the embedded model",
        "onrw train mini --photos photos --out trained --minutes 120",
    ),
    Command(
        ("bench", "robustness"),
        "..bench.robustness",
        "measure the robustness to each attack",
        "onrw bench robustness --images photos --out results",
    ),
    Command(
        ("bench", "adversarial"),
        "..bench.adversarial",
        "measure removal and forgery without the key",
        "onrw bench adversarial --images photos --out results",
    ),
    Command(
        ("bench", "false-positives"),
        "..bench.false_positives",
        "measure the false-positive rate on unmarked photos",
        "onrw bench false-positives --images photos --keys 300 --readings 300000 --out results",
    ),
    Command(
        ("bench", "spaces"),
        "..bench.spaces",
        "compare optimisation in pixels, latent and noise",
        "onrw bench spaces --images photos --train others --out results",
    ),
    Command(
        ("bench", "read"),
        "..bench.read",
        "measure the time of reading",
        "onrw bench read --images photos",
    ),
    Command(
        ("bench", "speed"),
        "..bench.speed",
        "measure time and memory",
        "onrw bench speed",
    ),
    Command(
        ("bench", "clip"),
        "..bench.clip",
        "measure flicker, time and reading of clips after H.264",
        "onrw bench clip --images photos",
    ),
    Command(
        ("bench", "visible"),
        "..bench.visible",
        "measure what is seen of a watermark, and show the worst places",
        "onrw bench visible --images photos drawings --peers --out results",
    ),
    Command(
        ("bench", "command"),
        "..bench.command",
        "compare the time of `onrw embed` with the library's",
        "onrw bench command --images photos",
    ),
    Command(
        ("bench", "families"),
        "..bench.families",
        "try every model family in ComfyUI, with tiny models",
        "onrw bench families --out results",
    ),
    Command(
        ("bench", "faults"),
        "..bench.faults",
        "kill, fill and race folder runs, and check what remains",
        "onrw bench faults --count 50",
    ),
    Command(
        ("bench", "sensitivity"),
        "..bench.sensitivity",
        "change the constants of the keyed extractor's loss, and measure what that costs",
        "onrw bench sensitivity --images photos",
    ),
    Command(
        ("bench", "memory"),
        "..bench.footprint",
        "compute the GPU memory that Stable Diffusion needs, without a GPU",
        "onrw bench memory --preset paper --steps 10 20",
    ),
    Command(
        ("bench", "nulltext"),
        "..bench.nulltext",
        "measure the benefit of null-text inversion",
        "onrw bench nulltext --images photos",
    ),
)
# Arguments that name files or folders.
PATHS = tuple("input inputs file output key registry mask extractor html certificate private_key".split())
TEXTS = ("note", "prompt")
GROUPS = {"key": "make keys", "train": "train the embedded model", "bench": "benchmarks"}


class Parser(argparse.ArgumentParser):
    """A parser whose error messages never show a key."""

    def error(self, message: str) -> NoReturn:
        super().error(one_line(redacted(message)))


def build_parser(words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The parser.

    Args:
        words: The command line. Only the module of its command is imported, for the arguments of that command.
    """
    parser = Parser(
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
            module = _module(command)
            module.add_arguments(sub)
            sub.set_defaults(run=module.run, name=" ".join(command.words))
    return parser


def check_arguments(arguments: argparse.Namespace) -> None:
    """Check names of files, and texts, before any work.

    Raises:
        ValueError: A name is empty, as of a shell variable without a value, which would mean the current folder; a
            result would replace the key, the registry or another file of an option; or a text is not
            Unicode, so that it could not be stored.
    """
    for name in PATHS:
        value = getattr(arguments, name, None)
        if "" in (value if isinstance(value, list) else [value]):
            raise ValueError(f"{name.replace('_', '-')}: the name is empty; give a file or a folder")
    output, html, registry = (getattr(arguments, name, None) for name in ("output", "html", "registry"))
    sides = sides_of(registry)
    check_results(arguments, [("output", output)] if output else [], others=sides)
    check_results(arguments, [("html", html)] if html else [], inputs=True, others=sides)
    check_results(arguments, [("registry: its database", path) for _, path in sides], inputs=True)
    for name in TEXTS:
        try:
            (getattr(arguments, name, None) or "").encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"--{name}: has bytes that are not UTF-8; write it in the encoding of the terminal"
            ) from None


def _module(command: Command) -> ModuleType:
    """The module of a command.

    Raises:
        ValueError: ComfyUI's registry has neither benchmarks nor training.
    """
    try:
        return importlib.import_module(command.module, __package__)
    except ModuleNotFoundError as error:
        package = importlib.util.resolve_name(command.module, __package__).rpartition(".")[0]
        if error.name != package:
            raise
        raise ValueError(
            f"onrw {' '.join(command.words)}: not part of this copy; install onrw from its repository"
        ) from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter("onrw: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files that the terminal cannot show
    try:
        arguments = build_parser(words).parse_args(words)
        check_arguments(arguments)
        return arguments.run(arguments)
    except KeyboardInterrupt:
        remark("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        complain("nobody reads the output any more; stopped")
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())  # or Python complains of the rest when it ends
        return BROKEN_PIPE
    except (ValueError, OSError) as error:
        complain(str(error))
        return BAD_INPUT
