"""The help pages of the nodes say what the nodes declare."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HELP = runpy.run_path(str(ROOT / "docs" / "help_pages.py"))


@pytest.fixture(scope="module")
def schemas() -> dict[str, dict]:
    return HELP["schemas"]()


def test_every_node_has_a_help_page_that_says_what_it_declares(schemas):
    pages = {path.stem: path.read_text(encoding="utf-8") for path in HELP["PAGES"].glob("*.md")}
    assert set(pages) == set(schemas)
    for name, page in pages.items():
        assert HELP["drawn"](schemas[name], page) == page, f"{name}: run python docs/help_pages.py"
        picture, own = HELP["PAGE"].match(page).groups()
        assert f"({name}.jpg)" in picture and len(own.split()) >= 20, name


def test_names_in_help_pages_exist(schemas):
    """Names in `code` are inputs, outputs or choices of a node, or files, or choices of a key's source."""
    entries = [entry for schema in schemas.values() for entry in schema["inputs"] + schema["outputs"]]
    known = {entry["id"] for entry in entries} | {str(o) for entry in entries for o in entry.get("options", [])}
    known |= {entry["default"] for entry in entries if entry["kind"] == "String" and entry.get("default")}
    for name in schemas:
        own = HELP["PAGE"].match((HELP["PAGES"] / f"{name}.md").read_text(encoding="utf-8")).groups()[1]
        assert [word for word in re.findall(r"`([^`]+)`", own) if word not in known and "/" not in word] == [], name
