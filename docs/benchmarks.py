"""Measures for docs/benchmarks.md, and writes the page.

    python docs/benchmarks.py
    python docs/benchmarks.py Robustness --images FOLDER
    python docs/benchmarks.py Robustness --images FOLDER --command 'onrw bench robustness --images FOLDER --peers'

The first command writes the page from the records in docs/benchmarks.json. With the title of a section it runs that
section's command before, with your folder for FOLDER, and records what it prints, the day and the commit; `--command`
changes the command, and a new title makes a new section. Nothing is measured with changes that are not committed.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "docs" / "benchmarks.json"
PAGE = ROOT / "docs" / "benchmarks.md"
WIRE_FORMAT = 2  # of the marks that are measured now
FOLDER = "FOLDER"

Record = dict[str, Any]


def page(head: list[str], records: list[Record]) -> str:
    """The page.

    Args:
        head: Its lines before the first section.
        records: "title", "command", "date", "commit", "wire_format" and the lines "text" of each section.
    """
    parts = ["\n".join(head)]
    for record in records:
        source = f"Measured {record['date']}, commit {record['commit']}: `{record['command']}`"
        old = [] if record["wire_format"] == WIRE_FORMAT else [f"**Wire format {record['wire_format']}.**", ""]
        parts.append("\n".join([f"## {record['title']}", "", source, "", *old, *record["text"]]))
    return "\n\n".join(parts) + "\n"


def measure(title: str, command: str, folders: list[str]) -> Record:
    """The record of a section.

    Args:
        title: Of the section.
        command: `onrw bench ...`; FOLDER stands for the folders.
        folders: Of photos.

    Raises:
        ValueError: The command names a folder and there is none, or there are changes that are not committed.
    """
    words = shlex.split(command)
    if words[:2] != ["onrw", "bench"]:
        raise ValueError(f"--command: {command!r} is not a benchmark; give onrw bench ...")
    if FOLDER in words and not folders:
        raise ValueError(f"--images: {command!r} needs a folder of photos")
    if _git("status", "--porcelain", "--", "onrw_core"):
        raise ValueError("onrw_core has changes that are not committed: commit them, so that the figures have a commit")
    commit = _git("rev-parse", "--short=7", "HEAD")
    run = [part for word in words[1:] for part in (folders if word == FOLDER else [word])]
    done = subprocess.run([sys.executable, "-m", "onrw_core", *run], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise ValueError(f"{command}: exit code {done.returncode}")
    return {
        "title": title,
        "command": command,
        "date": date.today().isoformat(),
        "commit": commit,
        "wire_format": WIRE_FORMAT,
        "text": ["```", *done.stdout.rstrip().splitlines(), "```"],
    }


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("title", nargs="?", help="section to measure; without it the page is written from the records")
    parser.add_argument("--images", nargs="+", default=[], metavar=FOLDER, help="folders of photos")
    parser.add_argument("--command", help="its command, if another than recorded")
    options = parser.parse_args(words)
    data = json.loads(RECORDS.read_text(encoding="utf-8"))
    if options.title:
        records = {record["title"]: record for record in data["sections"]}
        command = options.command or records.get(options.title, {}).get("command")
        if command is None:
            parser.error(f"there is no section {options.title!r}: {', '.join(records)}; or give --command")
        try:
            records[options.title] = measure(options.title, command, options.images)
        except ValueError as error:
            parser.error(str(error))
        data["sections"] = list(records.values())
        RECORDS.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(data["head"], data["sections"]), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
