"""The files that a command reads, which none of its results replaces, not even with --overwrite.

A lost key, registry or mask cannot be restored.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress

__all__ = ["check_results", "sides_of"]

OPTIONS = tuple("key registry mask extractor certificate private_key".split())
INPUTS = tuple("input inputs file".split())
SIDES = ("-journal", "-wal", "-shm")  # of a database's name: files that SQLite writes and removes


def check_results(
    arguments: argparse.Namespace,
    results: Iterable[tuple[str, str | os.PathLike]],
    *,
    inputs: bool = False,
    others: Iterable[tuple[str, str | os.PathLike]] = (),
) -> None:
    """Refuse results that are files of the command's options.

    Args:
        arguments: Of the command.
        results: (what it is, path) of each file that is to be written.
        inputs: Refuse the images that the command reads as well, for results of another kind.
        others: (what it is, path) of further files that are kept.

    Raises:
        ValueError: A result is such a file, by its name or by a link.
    """
    files = [*_kept(arguments, inputs), *others]
    kept = {identity: what for what, path in files for identity in _identities(path)}
    for name, path in results:
        what = next((kept[each] for each in _identities(path) if each in kept), None)
        if what is not None:
            raise ValueError(f"{name} {os.fspath(path)}: is {what}, which is never replaced; name another")


def sides_of(registry: str | None) -> list[tuple[str, str]]:
    """(what it is, path) of the files that SQLite writes and removes beside a registry, which may be a link."""
    return (
        [("a file of the registry's database", os.path.realpath(registry) + side) for side in SIDES] if registry else []
    )


def _kept(arguments: argparse.Namespace, inputs: bool) -> Iterator[tuple[str, str]]:
    """(what it is, path) of the files that are kept."""
    for name in OPTIONS:
        for path in _paths(arguments, name):
            if name != "extractor" or os.path.isfile(path):  # which may be a name, such as rivagan
                yield f"the file of --{name.replace('_', '-')}", path
    for name in INPUTS if inputs else ():
        for path in _paths(arguments, name):
            yield "an input", path


def _paths(arguments: argparse.Namespace, name: str) -> list[str]:
    """What is given for an argument: one, or in benchmarks several."""
    given = getattr(arguments, name, None) or []
    return given if isinstance(given, list) else [given]


def _identities(path: str | os.PathLike) -> list[str | tuple[int, int]]:
    """What tells whether two paths are one file: the name without links, and the file itself where it exists."""
    found: list[str | tuple[int, int]] = [os.path.realpath(path)]
    with suppress(OSError):  # names may differ in case
        status = os.stat(path)
        if status.st_ino:  # 0 on file systems without
            found.append((status.st_dev, status.st_ino))
    return found
