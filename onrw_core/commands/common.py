"""Functions shared by the commands: keys, batches, progress."""

from __future__ import annotations

import argparse
import errno
import logging
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..payload.keys import ENVIRONMENT, Key, redacted
from .cli import BAD_INPUT, NOT_READABLE, OK, SOME_FAILED
from .output import complain, one_line

if TYPE_CHECKING:
    from ..stages.inversion import InversionState
    from ..stages.noise_optimisation import State

__all__ = [
    "Batch",
    "Progress",
    "add_fpr",
    "add_key",
    "add_overwrite",
    "add_verbose",
    "load_key",
    "number",
    "p_value",
    "run_batch",
]

# Errors of the disk, after which no other result can be written either.
FULL = {errno.ENOSPC, errno.EROFS, getattr(errno, "EDQUOT", errno.ENOSPC)}
SQLITE_FULL = 13

log = logging.getLogger(__name__)


def add_key(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--key", metavar="FILE", help=f"key file (default: the key in the variable {ENVIRONMENT})")


def add_fpr(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fpr", type=_rate, default=1e-6, metavar="P", help="false-positive rate (default: 1e-6)")


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: a false-positive rate lies between 0 and 1, e.g. 1e-6")
    return value


def load_key(path: str | None) -> Key:
    """The key of --key or of the environment."""
    if path is not None:
        return Key.load(path)
    if ENVIRONMENT not in os.environ:
        raise ValueError(
            f"no key: give --key FILE, or the text of the file in the environment variable {ENVIRONMENT}; "
            "`onrw key new -o FILE` makes one"
        )
    return Key.from_environment()


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--overwrite", action="store_true", help="replace existing files, the input included")


def add_verbose(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--verbose", action="store_true", help="print the raw bits as well")


def number(kind: type, low: float, high: float) -> Callable[[str], float]:
    """An argparse type: a number from `low` to `high`."""

    def convert(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is out of range; give {low:g} to {high:g}")
        return value

    return convert


def run_batch(
    items: Iterable,
    work: Callable[[Any, str], None],
    name: Callable[..., Path],
    total: int | None = None,
    refused: Sequence[tuple[Path, ValueError]] = (),
) -> int:
    """Call `work` for each item; an item that fails is reported, and the others are processed.

    Errors that are not due to bad input, such as too little memory, do not stop the others either; their traceback is
    shown.

    Args:
        items: The items.
        work: Called with an item and its place, see `Batch.place`.
        name: Item -> its file.
        total: Number of items; None to count them first.
        refused: Files that are not processed, with the reason; see `folders.Plan`.

    Returns:
        The exit code: 0 all done, 1 some, 2 none.
    """
    if total is None:
        items = list(items)
        total = len(items)
    batch = Batch(total + len(refused))
    for file, error in refused:
        batch.place()
        batch.failed(file, error)
    for item in items:
        place = batch.place()
        try:
            work(item, place)
        except Exception as error:
            batch.failed(name(item), error)
    return batch.code


class Batch:
    """Counts of a batch of files.

    Attributes:
        total: Number of files.
        failures: Number of failed files.
        skipped: Number of files done in an earlier run.
        unreadable: Number of written files whose watermark cannot be read.
    """

    def __init__(self, total: int) -> None:
        self.total, self.failures, self.skipped, self.unreadable = total, 0, 0, 0
        self._number = 0

    def place(self) -> str:
        """The place of the next file among all, such as "2 of 7: "; empty for a single file."""
        self._number += 1
        return "" if self.total == 1 else f"{self._number} of {self.total}: "

    def failed(self, file: Path, error: Exception) -> None:
        """Report a file that failed, with the traceback unless the input is to blame.

        Raises:
            OSError: The disk is full or read-only, so that all other files would fail as well; or nobody reads the
                output any more, which is no failure of the file.
        """
        if isinstance(error, BrokenPipeError):
            raise error
        if _disk_is_full(error):
            raise OSError(
                f"{error}; stopped, since no other result can be written; make room and repeat the command"
            ) from error
        if not isinstance(error, (ValueError, OSError)):
            log.error("unexpected:", exc_info=error)
        self.failures += 1
        text = str(error) or type(error).__name__
        complain(text if str(file) in text else f"{file}: {text}")

    @property
    def code(self) -> int:
        """The exit code: 0 all done, 1 some, 2 none, 3 all written, but not all watermarks can be read."""
        if not self.failures:
            return NOT_READABLE if self.unreadable else OK
        return SOME_FAILED if self.failures < self.total else BAD_INPUT


def _disk_is_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL or getattr(error, "sqlite_errorcode", 0) == SQLITE_FULL:
            return True
        error = error.__cause__
    return False


class Progress:
    """A progress bar for one photo, on stderr if that is a terminal.

    Args:
        label: Name of the photo.
    """

    def __init__(self, label: str) -> None:
        from tqdm import tqdm

        self.label = one_line(redacted(label))
        self.bar = tqdm(desc=self.label, disable=None, leave=False, file=sys.stderr)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()

    def inversion(self, state: InversionState) -> None:
        """Show a step of the inversion."""
        self._to(f"{self.label}: inversion", state.step, state.total)

    def optimisation(self, state: State) -> None:
        """Show an iteration of the optimisation."""
        self.bar.set_postfix(bits=f"{state.bit_accuracy:.1%}", psnr=f"{state.psnr:.1f}", refresh=False)
        self._to(self.label, state.iteration, state.total)

    def deep_search(self, done: float) -> None:
        """Show the done share of the deep search."""
        self._to(f"{self.label}: deep search", round(100 * done), 100)

    def frame(self, number: int) -> None:
        """Show the number of marked frames of a video, whose total is not known."""
        self.bar.set_postfix(refresh=False)
        self.bar.total = None
        self.bar.set_description(f"{self.label}: frames", refresh=False)
        self.bar.n = number
        self.bar.refresh()

    def _to(self, label: str, done: int, total: int) -> None:
        if done < self.bar.n:  # another stage
            self.bar.reset()
        self.bar.set_description(label, refresh=False)
        self.bar.total = total
        self.bar.update(done - self.bar.n)


def p_value(log10_p: float) -> str:
    """A p-value as text: "p = 0.31" or "p = 1e-12"."""
    return f"p = {10**log10_p:.2g}" if log10_p > -3 else f"p = 1e{log10_p:.0f}"
