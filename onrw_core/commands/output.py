"""Output of the commands, on single lines: names of files are escaped."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

from ..payload.keys import redacted
from ..strict_json import to_json

__all__ = ["LineFormatter", "complain", "json_line", "one_line", "say"]


def one_line(text: str) -> str:
    """Text on one line: line breaks and control characters are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def say(text: str, to: TextIO | None = None) -> None:
    """Print a line on stdout or `to`."""
    print(one_line(text), file=to, flush=True)


def complain(error: str) -> None:
    """Print an error as a line on stderr, without keys."""
    print(one_line(f"onrw: error: {redacted(error)}"), file=sys.stderr)


def json_line(*, to: TextIO | None = None, **fields) -> None:
    """Print a JSON object on one line, on stdout or `to`; infinite values (PSNR of equal images) become null."""
    print(to_json(fields), file=to, flush=True)


class LineFormatter(logging.Formatter):
    """Formats log messages on one line, tracebacks on several."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return one_line(super().formatMessage(record))
