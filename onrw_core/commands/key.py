"""``onrw key new``: a secret key in a file."""

from __future__ import annotations

import argparse

from ..payload.keys import Key
from .output import say

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="key file to write; never overwritten")


def run(arguments: argparse.Namespace) -> int:
    key = Key.new()
    key.save(arguments.output)
    say(f"{arguments.output}: new key {key.fingerprint}. Keep a copy: without it no watermark can be read.")
    return 0
