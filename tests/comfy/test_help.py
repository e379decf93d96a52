"""The help pages of the nodes and their pictures, served where ComfyUI's page looks for them."""

import urllib.request
from pathlib import Path

DOCS = Path(__file__).parents[2] / "web" / "docs"


def test_help_pages_and_pictures_are_served(server):
    (pack,) = (path.name for path in (server.base / "custom_nodes").iterdir() if (path / "web" / "docs").is_dir())
    pages = sorted(DOCS.glob("*.md"))
    assert pages
    for file in (*pages, *(page.with_suffix(".jpg") for page in pages)):
        with urllib.request.urlopen(f"{server.url}/extensions/{pack}/docs/{file.name}", timeout=60) as answer:
            assert answer.read() == file.read_bytes(), file.name
