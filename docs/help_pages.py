"""Brings the help pages of the nodes, web/docs/<node id>.md, up to date with the nodes.

    python docs/help_pages.py

A page has the node's name and description, its picture (`node_pictures.py` takes it), text written by hand, and tables
of the inputs and outputs. Name, description and tables are the nodes' own; only the text between them is written here.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "web" / "docs"
PAGE = re.compile(r"\A# .*?\n\n.*?\n\n(!\[.*?\n\n)(.*?)<!-- sockets -->.*\Z", re.DOTALL)


def schemas() -> dict[str, dict]:
    """What the nodes declare, by their ids; ComfyUI is not needed."""
    script = ROOT / "tests" / "test_pack_contract.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=ROOT.parent, check=True)
    return {schema["node_id"]: schema for schema in json.loads(done.stdout.splitlines()[-1])}


def drawn(schema: dict, page: str) -> str:
    """A page with what the node declares.

    Args:
        schema: Of the node.
        page: The page so far; "" to make one.
    """
    match = PAGE.match(page)
    picture, text = match.groups() if match else (f"![The node in a graph]({schema['node_id']}.jpg)\n\n", "")
    head = f"# {schema['display_name']}\n\n{schema['description']}\n\n{picture}{text}<!-- sockets -->\n"
    tables = _table("Inputs", schema["inputs"]) + _table("Outputs", schema["outputs"])
    return f"{head}{tables}<!-- end -->\n"


def _table(title: str, entries: list[dict]) -> str:
    if not entries:
        return ""
    rows = [f"| `{entry['id']}` | {_kind(entry)} | {_cell(entry['tooltip'])} |" for entry in entries]
    return "\n".join([f"## {title}", "", "| name | kind | what it is |", "|-|-|-|", *rows, "", ""])


def _kind(entry: dict) -> str:
    kind = entry["kind"].lower().removeprefix("onrw_").replace("multitype", "watermark or inversion")
    marks = [name for name in ("optional", "advanced") if entry.get(name)]
    default = entry.get("default")
    if default not in (None, ""):
        marks.append(f"default {str(default).lower() if isinstance(default, bool) else default}")
    return _cell(", ".join([kind, *marks]))


def _cell(text: str) -> str:
    return text.strip().replace("|", "\\|").replace("\n", "<br>")


def main() -> None:
    PAGES.mkdir(parents=True, exist_ok=True)
    for name, schema in schemas().items():
        path = PAGES / f"{name}.md"
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        after = drawn(schema, before)
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
