"""``onrw lookup``: what an id stands for."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from .common import json_line, say

if TYPE_CHECKING:
    from ..registry import Entry

__all__ = ["add_arguments", "line", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", nargs="?", metavar="HEX", help="id to look up (default: list all)")
    parser.add_argument("--registry", metavar="FILE", required=True, help="registry that `onrw embed` wrote")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def run(arguments: argparse.Namespace) -> int:
    from ..registry import Registry

    registry = Registry(arguments.registry)
    entries = registry.entries() if arguments.id is None else registry.lookup(arguments.id)
    for entry in entries:
        json_line(**asdict(entry)) if arguments.json else say(line(entry))
    if not entries and not arguments.json:
        say(f"{arguments.registry}: " + ("empty" if arguments.id is None else f"nothing under {arguments.id}"))
    return 0


def line(entry: Entry) -> str:
    """An entry for people."""
    when = datetime.fromtimestamp(entry.time, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    return f"{entry.id}  {when}  {entry.note or '(no note)'}  file {entry.file_hash[:16] or '-'}"
