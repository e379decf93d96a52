"""Writes the owner's publisher id and repository into every file that names them.

They are placeholders until the owner has registered at registry.comfy.org and made the repository public. The one place
to fill them in is owner.json beside this file:

    python publishing/fill_in.py

replaces what pyproject.toml holds so far, in all of `FILES`; it may be run again after another change.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

__all__ = ["FILES", "fill_in"]

ROOT = Path(__file__).parents[1]
OWNER = "publishing/owner.json"
FILES = (
    "pyproject.toml",
    "README.md",
    "CONTRIBUTING.md",
    ".github/workflows/publish.yml",
)
PUBLISHER = re.compile(r"[a-z0-9][a-z0-9-]*")
REPOSITORY = re.compile(r"https://github\.com/[\w.-]+/[\w.-]+?")


def fill_in(root: Path = ROOT) -> list[str]:
    """Write the values of owner.json into the files of a clone.

    Args:
        root: The clone.

    Returns:
        The files that were changed.

    Raises:
        ValueError: A value that the registry does not take.
    """
    owner = json.loads((root / OWNER).read_text(encoding="utf-8"))
    publisher, repository = owner["publisher"], owner["repository"]
    if not PUBLISHER.fullmatch(publisher):
        raise ValueError(f"{OWNER}: publisher {publisher!r}: lower-case letters, digits and hyphens are needed")
    if not REPOSITORY.fullmatch(repository) or repository.endswith(".git"):
        raise ValueError(f"{OWNER}: repository {repository!r}: give https://github.com/NAME/REPOSITORY")
    project = (root / "pyproject.toml").read_text(encoding="utf-8")
    line = 'PublisherId = "{}"'
    address = re.search(r'^Repository = "(.*)"', project, re.MULTILINE)[1]
    before = {
        re.search(rf"^{line.format('.*')}", project, re.MULTILINE)[0]: line.format(publisher),
        # The addresses of raw files, and the workflow, have a part of the repository's address.
        _name(address): _name(repository),
    }
    changed = []
    for name in FILES:
        text = (root / name).read_text(encoding="utf-8")
        replaced = re.sub("|".join(map(re.escape, before)), lambda match: before[match[0]], text)
        if replaced != text:
            (root / name).write_text(replaced, encoding="utf-8", newline="\n")
            changed.append(name)
    return changed


def _name(repository: str) -> str:
    """NAME/REPOSITORY of an address."""
    return repository.removeprefix("https://github.com/")


if __name__ == "__main__":
    print("changed:", ", ".join(fill_in()) or "nothing")
