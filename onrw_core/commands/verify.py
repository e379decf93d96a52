"""``onrw verify``: a report about one image, for people."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from ..payload.keys import ENVIRONMENT, Key
from .common import add_fpr, add_key, load_key
from .output import say

__all__ = ["add_arguments", "add_sources", "given_key", "run"]


def add_sources(parser: argparse.ArgumentParser) -> None:
    """The options of what an image is compared with: key and registry."""
    add_key(parser)
    parser.add_argument("--registry", metavar="FILE", help="show what this registry says of the id")
    add_fpr(parser)


def given_key(arguments: argparse.Namespace) -> Key | None:
    """The key of --key or of the environment; None where neither is given.

    Raises:
        ValueError: A registry without a key.
    """
    if arguments.key is not None or ENVIRONMENT in os.environ:
        return load_key(arguments.key)
    if arguments.registry is not None:
        raise ValueError("--registry: an id is read with a key; give --key FILE")
    return None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="image")
    add_sources(parser)
    parser.add_argument("--html", metavar="OUT", help="write the report as a page as well, with the image in it")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing page")


def run(arguments: argparse.Namespace) -> int:
    key = given_key(arguments)

    from ..imaging import files
    from ..payload.registry import Registry
    from .html_report import render
    from .report import Examiner

    page = None if arguments.html is None else Path(arguments.html)
    if page is not None:
        files.check_free(page, Path(arguments.file), arguments.overwrite)
    registry = None if arguments.registry is None else Registry(arguments.registry)
    report = Examiner(key, registry, arguments.fpr)(arguments.file, files.read(arguments.file))
    for line in report.lines():
        say(line)
    if page is not None:
        files.write(page, render(report).encode(), overwrite=arguments.overwrite)
        say(f"  report: {page}")
    return 0
