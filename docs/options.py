"""Brings docs/options.md, the list of all options of the commands, up to date with the commands.

    python docs/options.py

Benchmarks and training are left out; their --help lists their options.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "options.md"
LEFT_OUT = ("bench", "train")
HEAD = """# Options of the commands

[command-line.md](command-line.md) explains the commands; this page lists what each of them takes.
`python docs/options.py` writes it from the commands.
"""

sys.path.insert(0, str(ROOT))


def page() -> str:
    """The page."""
    from onrw_core.commands.cli import COMMANDS, build_parser

    parts = [HEAD]
    for command in COMMANDS:
        if command.words[0] not in LEFT_OUT:
            parts.append(_section(_subparser(build_parser(command.words), command.words)))
    return "\n".join(parts)


def _subparser(parser: argparse.ArgumentParser, words: tuple[str, ...]) -> argparse.ArgumentParser:
    for word in words:
        (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
        parser = commands.choices[word]
    return parser


def _section(parser: argparse.ArgumentParser) -> str:
    rows = [f"| {_names(action)} | {_meaning(action)} |" for action in parser._actions if action.dest != "help"]
    return "\n".join(
        [f"## {parser.prog}", "", parser.description or "", "", "| option | what it is |", "|-|-|", *rows, ""]
    )


def _names(action: argparse.Action) -> str:
    """The names of an option with its value, or what a positional argument is called."""
    choices = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else None
    value = action.metavar or choices or action.dest.upper()
    value = " ".join(value) if isinstance(value, tuple) else value
    if not action.option_strings:
        return _code(value)
    return ", ".join(_code(name if action.nargs == 0 else f"{name} {value}") for name in action.option_strings)


def _code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|")


def _meaning(action: argparse.Action) -> str:
    return ((action.help or "") % {**vars(action), "prog": "onrw"}).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
