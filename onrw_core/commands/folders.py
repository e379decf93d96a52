"""The files of a command and their results, planned before any work.

Folders are taken with their subfolders, and the results have the same tree. Files that are left out are reported.
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..imaging.atomic import are_one_file, check_writable, is_temporary
from ..imaging.formats import FORMATS, is_image, kept_suffix
from .output import remark

__all__ = [
    "JOURNAL",
    "KEEP",
    "Plan",
    "check_free",
    "check_name",
    "expand",
    "make_folder",
    "plan",
    "sentences",
    "why_left_out",
]

JOURNAL = "onrw-embed.jsonl"  # in the folder of the results, see `journal`
KEEP = "keep"
SHOWN = 5  # largest number of names in a message
LONGEST_NAME = 255  # bytes, if the file system gives no limit

Remarks = dict[str, list[str]]  # remark -> names of files


@dataclass(frozen=True)
class Plan:
    """Planned jobs.

    Attributes:
        jobs: (photo, result) pairs.
        refused: (photo, reason) of photos that are not processed.
    """

    jobs: list[tuple[Path, Path]] = field(default_factory=list)
    refused: list[tuple[Path, ValueError]] = field(default_factory=list)

    @property
    def total(self) -> int:
        return len(self.jobs) + len(self.refused)


def expand(inputs: Iterable[str]) -> list[Path]:
    """Files, and the images in folders and their subfolders, sorted; files that are left out are reported.

    Raises:
        ValueError: A folder has no image.
    """
    return [file for file, _ in _found(inputs, None)]


def plan(
    inputs: Sequence[str],
    output: str,
    overwrite: bool,
    expected: Callable[[Path], bool] = lambda result: False,
    suffix: str = KEEP,
) -> Plan:
    """Plan the results of input files, with all checks before any work.

    The result of one file is the file `output`. The results of several files or of a folder, or of any file if `output`
    is a folder or ends with a slash, go into that folder under their own names and subfolders. Folders are created.

    Args:
        inputs, output, overwrite: Arguments of the command.
        expected: Whether a result may exist already.
        suffix: Suffix of the results in a folder: one of `FORMATS`, or `KEEP` for the photo's own file format. Formats
            that cannot be kept become PNG, and are reported.

    Raises:
        ValueError: A result would be overwritten, or cannot be written.
    """
    target = Path(output)
    many = len(inputs) > 1 or any(Path(path).is_dir() for path in inputs)
    # Not `Path.is_dir`, which raises an error of a name that is too long.
    if many or os.path.isdir(target) or output.endswith(("/", os.sep)):
        if target.exists() and not target.is_dir():
            raise ValueError(f"output {target}: is a file, but several results need a folder; name a folder")
        return _planned(_into(_found(inputs, target), target, suffix), overwrite, expected)
    if target.suffix.lower() not in FORMATS:
        raise ValueError(f"output {target}: unknown file format; use one of the suffixes {', '.join(FORMATS)}")
    if not target.parent.is_dir():
        raise ValueError(f"output {target}: cannot be written, {target.parent} is not a folder; create it first")
    planned = _planned([(Path(inputs[0]), target)], overwrite, expected)
    for _, error in planned.refused:
        raise error
    return planned


def _planned(jobs: list[tuple[Path, Path]], overwrite: bool, expected: Callable[[Path], bool]) -> Plan:
    planned = Plan()
    seen: dict[Path, Path] = {}
    inputs = {os.path.realpath(file): file for file, _ in jobs}
    for file, result in jobs:
        written = Path(os.path.realpath(result))  # results that exist may be links to one file
        if written in seen:
            raise ValueError(f"{seen[written]} and {file} would both become {result}; process them in two runs")
        seen[written] = file
        other = inputs.get(str(written), file)
        if other != file:
            raise ValueError(f"output {result}: would replace the input {other}; name another folder")
        try:
            check_name(result)
        except ValueError as error:
            planned.refused.append((file, error))
            continue
        check_free(file, result, lambda result: overwrite or expected(result))
        planned.jobs.append((file, result))
    for folder in dict.fromkeys(result.parent for _, result in planned.jobs):
        make_folder(folder)
    _check_spelling(planned.jobs)
    return planned


def make_folder(folder: Path) -> None:
    """Make a folder of results, unless it is there.

    Raises:
        ValueError: No file can be made in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        check_writable(folder)
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"output {folder}: cannot be written ({reason}); name another folder") from error


def _check_spelling(jobs: list[tuple[Path, Path]]) -> None:
    """Refuse results whose names are spelled differently and mean one file on this file system.

    Raises:
        ValueError: Two results are one file.
    """
    alike: dict[str, tuple[Path, Path]] = {}
    for file, result in jobs:
        spelling = unicodedata.normalize("NFC", str(result)).casefold()
        before, other = alike.setdefault(spelling, (file, result))
        if other == result:
            continue
        try:
            same = result.parent.samefile(other.parent) and are_one_file(result.parent, other.name, result.name)
        except OSError:  # a name that is too long for the check
            same = False
        if same:
            raise ValueError(f"{before} and {file} would both become {result}; process them in two runs")


def _found(inputs: Iterable[str], target: Path | None) -> list[tuple[Path, Path]]:
    """Files, with their paths relative to their input folder; results in `target` are left out."""
    files: list[tuple[Path, Path]] = []
    left_out: Remarks = defaultdict(list)
    for path in map(Path, inputs):
        if not path.is_dir():
            files.append((path, Path(path.name)))
            continue
        below = [(file, file.relative_to(path)) for file in _below(path, target, left_out)]
        if not below:
            raise ValueError(f"folder {path}: no image in it ({', '.join(FORMATS)})")
        files += below
    _report(left_out)
    return files


def _below(folder: Path, target: Path | None, left_out: Remarks) -> Iterator[Path]:
    """The images in a folder and its subfolders."""
    own = None if target is None or target.resolve() == folder.resolve() else target.resolve()

    def unreadable(error: OSError) -> None:
        left_out["folders that cannot be read"].append(str(error.filename))

    for place, folders, names in os.walk(folder, onerror=unreadable):
        here = Path(place)
        for name in list(folders):
            inner, reason = here / name, ""
            if own is not None and inner.resolve() == own:
                reason = "the folder of the results"
            elif name.startswith("."):
                reason = "hidden folders"
            elif inner.is_symlink():
                reason = "links to folders"
            if reason:
                left_out[reason].append(str(inner))
                folders.remove(name)
        folders.sort()
        for file in (here / name for name in sorted(names)):
            if file.name == JOURNAL or is_temporary(file):
                continue
            reason = why_left_out(file)
            if reason:
                left_out[reason].append(str(file))
            else:
                yield file


def why_left_out(file: Path) -> str:
    """Which kind of file it is that is not taken from a folder; empty for an image."""
    if file.name.startswith("."):
        return "hidden files"
    try:
        if not file.is_file():
            return "pipes, devices and broken links"
    except OSError:  # its folder can be listed and not entered
        return "files that cannot be read"
    return "" if is_image(file) else "files that are not images, or of unsupported formats"


def _into(found: list[tuple[Path, Path]], target: Path, suffix: str) -> list[tuple[Path, Path]]:
    """Results in a folder; of results with the same name, those with a new suffix keep the old suffix before it."""
    converted: Remarks = defaultdict(list)
    proposed = []
    for file, name in found:
        if suffix == KEEP:
            end, why = kept_suffix(file)
            if why:
                converted[why].append(str(file))
        else:
            end = suffix
        proposed.append(name if end == name.suffix else name.with_suffix(end))
    _report(converted, "")
    times = Counter(proposed)
    return [
        (file, target / (result if times[result] == 1 or result == name else Path(f"{name}{result.suffix}")))
        for (file, name), result in zip(found, proposed, strict=True)
    ]


def check_name(result: Path) -> None:
    """Raise an error if the name of a result is too long, before the work.

    Raises:
        ValueError: It is.
    """
    folder = result.parent
    while not folder.is_dir():
        folder = folder.parent
    try:
        longest = os.pathconf(folder, "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):  # Windows; a file system without a limit
        longest = LONGEST_NAME
    if len(os.fsencode(result.name)) > longest:
        raise ValueError(
            f"output {result}: its name is too long for the file system; give it, or the photo that it is named "
            "after, a shorter name"
        )


def check_free(file: Path, result: Path, replaceable: Callable[[Path], bool]) -> None:
    """Raise an error if a result would replace what it may not.

    Args:
        file: The input.
        result: Of that input.
        replaceable: Whether a file may be replaced.

    Raises:
        ValueError: There is a file that may not be replaced, or something else than a file.
    """
    if not result.exists():
        return
    if not result.is_file():
        raise ValueError(f"output {result}: is not a regular file; name another")
    if not replaceable(result):
        what = "is the input itself" if file.exists() and result.samefile(file) else "exists"
        raise ValueError(f"output {result}: {what}; name another, or give --overwrite")


def _report(remarks: Remarks, word: str = "left out: ") -> None:
    for sentence in sentences(remarks):
        remark(f"{word}{sentence}")


def sentences(remarks: Remarks) -> Iterator[str]:
    """Each remark with the first of its files."""
    for what, names in remarks.items():
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        yield f"{what}: {', '.join(names[:SHOWN])}{more}"
