"""`onrw bench families`: the table of model families, measured in every ComfyUI that is found.

The work is done by tests/comfy/family_table.py in ComfyUI's own interpreter, on tiny models of ComfyUI's own classes.
It keeps a report for each version in the output folder, and goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

from ..imaging.atomic import atomic_write

__all__ = ["add_arguments", "run", "table"]

TESTS = Path(__file__).parents[2] / "tests" / "comfy"
BLOCK = re.compile(r"(<!-- families -->\n).*?(<!-- end -->)", re.DOTALL)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `onrw bench families`."""
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of the reports; families in them are not run again")
    add("--page", type=Path, help="Markdown page whose table is replaced, between <!-- families --> and <!-- end -->")


def run(args: argparse.Namespace) -> int:
    """Measure, print the tables, write them into the page; 0 if no cell failed."""
    if not TESTS.is_dir():
        raise ValueError(f"bench families: {TESTS} is missing; run it in a checkout of the repository")
    args.out.mkdir(parents=True, exist_ok=True)
    installation = _tests("installation")
    found = installation.installations()
    if not found:
        raise ValueError(f"bench families: {installation.absence()}")
    tables, failed = [], False
    for one in found:
        report = args.out / f"{one.version}.json"
        command = [one.python, TESTS / "family_table.py", one.path, report]
        failed |= subprocess.run(command, env=one.environment).returncode != 0
        tables.append(f"ComfyUI {one.version}:\n\n{table(json.loads(report.read_text(encoding='utf-8')))}")
    text = f"{time.strftime('%Y-%m-%d')}, commit {_commit()}\n\n" + "\n\n".join(tables)
    print(text)
    if args.page is not None:
        page = BLOCK.sub(lambda block: f"{block[1]}{text}\n{block[2]}", args.page.read_text(encoding="utf-8"))
        with atomic_write(args.page) as file:
            file.write(page.encode())
    return int(failed)


def table(rows: dict[str, dict[str, str]]) -> str:
    """Markdown of a report: one row for each family."""
    columns = list(next(iter(rows.values())))
    lines = [f"| {' | '.join(['family', *columns])} |", f"|{'-|' * (len(columns) + 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join([name, *row.values()])} |" for name, row in rows.items())])


def _tests(name: str) -> ModuleType:
    """A module of the tests, which are no package of this one."""
    spec = importlib.util.spec_from_file_location(f"onrw_{name}", TESTS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _commit() -> str:
    command = ["git", "-C", str(TESTS), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
