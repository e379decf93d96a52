"""What the commands share: keys, where results go, batches, progress."""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from ..cli import BAD_INPUT, OK, SOME_FAILED
from ..keys import ENVIRONMENT, Key

if TYPE_CHECKING:
    from ..inversion import InversionState
    from ..optimise import State

__all__ = [
    "Batch",
    "Progress",
    "add_fpr",
    "add_key",
    "add_overwrite",
    "expand",
    "json_line",
    "load_key",
    "plan",
    "number",
    "p_value",
    "run_batch",
    "say",
]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
LOSSLESS = ".png"  # what is written into folders

log = logging.getLogger(__name__)


def add_key(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--key", metavar="FILE", help=f"key file; else the variable {ENVIRONMENT} holds its text")


def add_fpr(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fpr", type=_rate, default=1e-6, metavar="P", help="rate of false alarms (default: 1e-6)")


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: a rate of false alarms lies between 0 and 1, e.g. 1e-6")
    return value


def load_key(path: str | None) -> Key:
    """The key of --key or of the environment."""
    if path is not None:
        return Key.load(path)
    if ENVIRONMENT not in os.environ:
        raise ValueError(
            f"no key: give --key FILE, or the file's line in the environment variable {ENVIRONMENT}; "
            "`onrw key new -o FILE` makes one"
        )
    return Key.from_environment()


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist, the input included")


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


def expand(inputs: Iterable[str]) -> list[Path]:
    """Files as they are, folders as the images that lie in them, sorted.

    Raises:
        ValueError: If a folder holds no image.
    """
    files: list[Path] = []
    for path in map(Path, inputs):
        if not path.is_dir():
            files.append(path)
            continue
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        if not found:
            raise ValueError(f"folder {path}: no image in it ({', '.join(SUFFIXES)})")
        files += found
    return files


def plan(
    inputs: Sequence[str], output: str, overwrite: bool, expected: Callable[[Path], bool] = lambda result: False
) -> list[tuple[Path, Path]]:
    """Which file goes where, checked before any work is done.

    One file goes to the file `output`; several, a folder's, or any when `output` is a folder or ends with a slash, go
    into that folder as PNG files of the same name. The folder is made.

    Args:
        inputs, output, overwrite: Of the command.
        expected: Whether a result may be there already.

    Raises:
        ValueError: If something would be overwritten, or cannot be written.
    """
    files, target = expand(inputs), Path(output)
    many = len(files) > 1 or any(Path(path).is_dir() for path in inputs)
    if many or target.is_dir() or output.endswith(("/", os.sep)):
        if target.exists() and not target.is_dir():
            raise ValueError(f"output {target}: is a file, and {len(files)} pictures need a folder")
        jobs = [(file, target / (file.stem + LOSSLESS)) for file in files]
    else:
        jobs = [(files[0], target)]
    seen: dict[Path, Path] = {}
    for file, result in jobs:
        if result.suffix.lower() not in SUFFIXES:
            raise ValueError(f"output {result}: unknown kind of file; end its name in one of {', '.join(SUFFIXES)}")
        if result in seen:
            raise ValueError(f"{seen[result]} and {file} would both become {result}; mark them in two runs")
        seen[result] = file
        if result.exists() and not overwrite and not expected(result):
            what = "is the input itself" if file.exists() and result.samefile(file) else "exists"
            raise ValueError(f"output {result}: {what}; name another, or give --overwrite")
    if jobs[0][1] is not target:
        target.mkdir(parents=True, exist_ok=True)
    folder = jobs[0][1].parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"output {jobs[0][1]}: cannot be written, {folder} is no folder that you can write to")
    return jobs


def run_batch(items: Iterable, work: Callable, name: Callable[..., Path], total: int | None = None) -> int:
    """Do `work` for each item; a bad one is named and the others are done all the same.

    What is no bad input but a defect, or too little memory, does not stop the others either; its traceback is shown.

    Args:
        items: What to do.
        work: Takes an item.
        name: The file of an item.
        total: How many items there are; None where they know themselves.

    Returns:
        The exit code: 0 all done, 1 some, 2 none.
    """
    batch = Batch(len(items) if total is None else total)
    for item in items:
        try:
            work(item)
        except Exception as error:
            batch.failed(name(item), error)
    return batch.code


class Batch:
    """What came of many files.

    Attributes:
        total: How many there are.
        failures: How many of them failed.
        skipped: How many were done before.
    """

    def __init__(self, total: int) -> None:
        self.total, self.failures, self.skipped = total, 0, 0

    def failed(self, file: Path, error: Exception) -> None:
        """Name a file that failed, with the traceback where that is due to no bad input."""
        if not isinstance(error, (ValueError, OSError)):
            log.error("unexpected:", exc_info=error)
        self.failures += 1
        text = str(error) or type(error).__name__
        print(f"onrw: error: {text if str(file) in text else f'{file}: {text}'}", file=sys.stderr)

    @property
    def code(self) -> int:
        """The exit code: 0 all done, 1 some, 2 none."""
        if not self.failures:
            return OK
        return SOME_FAILED if self.failures < self.total else BAD_INPUT


class Progress:
    """A progress bar of marking one photo, on stderr and silent where that is no terminal.

    Args:
        label: What is marked.
    """

    def __init__(self, label: str) -> None:
        from tqdm import tqdm

        self.label = label
        self.bar = tqdm(desc=label, disable=None, leave=False, file=sys.stderr)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()

    def inversion(self, state: InversionState) -> None:
        """A step of the inversion; with null-text it takes as long as the rest."""
        self._to(f"{self.label}: inversion", state.step, state.total)

    def optimisation(self, state: State) -> None:
        """An iteration of the optimisation."""
        self.bar.set_postfix(bits=f"{state.bit_accuracy:.1%}", psnr=f"{state.psnr:.1f}", refresh=False)
        self._to(self.label, state.iteration, state.total)

    def _to(self, label: str, done: int, total: int) -> None:
        if done < self.bar.n:  # another stage
            self.bar.reset()
        self.bar.set_description(label, refresh=False)
        self.bar.total = total
        self.bar.update(done - self.bar.n)


def json_line(*, to: TextIO | None = None, **fields) -> None:
    """One JSON object on a line of its own, on stdout or `to`; what is not finite (PSNR of equal pictures) is null."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in fields.items()
    }
    print(json.dumps(finite, ensure_ascii=False, allow_nan=False), file=to, flush=True)


def p_value(log10_p: float) -> str:
    """A p-value in words: "p = 0.31" or "p = 1e-12"."""
    return f"p = {10**log10_p:.2g}" if log10_p > -3 else f"p = 1e{log10_p:.0f}"


def say(text: str, to: TextIO | None = None) -> None:
    print(text, file=to, flush=True)
