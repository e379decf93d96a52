"""Output of the commands, on single lines and without keys: names of files are escaped, texts of keys hidden."""

from __future__ import annotations

import logging
import sys
from typing import Any, TextIO

from ..payload.keys import redacted
from ..strict_json import to_json

__all__ = ["LineFormatter", "complain", "json_line", "one_line", "remark", "say"]


def one_line(text: str) -> str:
    """Text on one line: line breaks and control characters are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def say(text: str, to: TextIO | None = None) -> None:
    """Print a line on stdout or `to`."""
    print(one_line(redacted(text)), file=to, flush=True)


def remark(text: str) -> None:
    """Print a remark as a line on stderr."""
    print(one_line(redacted(f"onrw: {text}")), file=sys.stderr)


def complain(error: str) -> None:
    """Print an error as a line on stderr."""
    remark(f"error: {error}")


def json_line(*, to: TextIO | None = None, **fields) -> None:
    """Print a JSON object on one line, on stdout or `to`; infinite values (PSNR of equal images) become null."""
    print(to_json(_redacted(fields)), file=to, flush=True)


def _redacted(value: Any) -> Any:
    """The values of a JSON object without keys: its text cannot be changed as a whole, and stay JSON."""
    if isinstance(value, dict):
        return {name: _redacted(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_redacted(item) for item in value]
    return redacted(value) if isinstance(value, str) else value


class LineFormatter(logging.Formatter):
    """Formats log messages on one line, tracebacks on several."""

    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:
        return one_line(super().formatMessage(record))
