"""The documentation: links and pictures lead somewhere, the landing page is short, figures name their source."""

import json
import re
import runpy
import subprocess
from pathlib import Path
from urllib.parse import unquote

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("web/**/*.md"), *ROOT.glob("onrw_core/**/*.md")]
)
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
BENCHMARKS = runpy.run_path(str(ROOT / "docs" / "benchmarks.py"))
MOST_WORDS = 700
MOST_BYTES = 400_000  # of a picture


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", text(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_and_pictures_lead_somewhere(page):
    for is_image, label, target in LINK.findall(text(page)):
        assert label.strip(), (target, "a link or picture without words")
        if re.match(r"https?://", target):
            assert not is_image, (target, "pictures are part of the repository")
            continue
        name, _, anchor = unquote(target).partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target
        if is_image:
            assert file.stat().st_size <= MOST_BYTES, (target, file.stat().st_size)
            with Image.open(file) as image:
                image.verify()


def test_pictures_are_used():
    """No picture lies about that no page shows."""
    shown = {
        (page.parent / unquote(target)).resolve()
        for page in PAGES
        for is_image, _, target in LINK.findall(text(page))
        if is_image and "//" not in target
    }
    files = [
        path for folder in ("docs", "web") for path in (ROOT / folder).rglob("*") if path.suffix in (".png", ".jpg")
    ]
    assert [path.name for path in files if path.resolve() not in shown] == []


def test_every_page_of_docs_is_linked():
    linked = {
        (page.parent / target.partition("#")[0]).resolve()
        for page in PAGES
        for _, _, target in LINK.findall(text(page))
    }
    assert [page.name for page in (ROOT / "docs").glob("*.md") if page.resolve() not in linked] == []


def test_readme_is_a_landing_page():
    readme = text(ROOT / "README.md")
    assert len(readme.split()) <= MOST_WORDS
    before_install = readme.split("## Install")[0]
    assert "![" in before_install  # the picture comes first
    limits = readme.split("## What it cannot do")[1].split("\n\n")[1]
    assert limits.count("\n- ") + 1 == 5
    for command in re.findall(r"^    onrw ([\w ]+?) (?:-|[\w.]+\.\w+)", readme, re.MULTILINE):
        assert command in text(ROOT / "docs" / "command-line.md")


def test_benchmarks_name_command_date_and_commit():
    sections = text(ROOT / "docs" / "benchmarks.md").split("\n## ")[1:]
    assert len(sections) >= 8
    for section in sections:
        found = re.search(r"^Measured (\d{4}-\d\d-\d\d), commit ([0-9a-f]{7}).*: `onrw bench .+`$", section, re.M)
        assert found, section.splitlines()[0]
        commit = ["git", "cat-file", "-e", f"{found[2]}^{{commit}}"]
        if subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True).returncode == 0:
            shallow = subprocess.run(
                ["git", "rev-parse", "--is-shallow-repository"], cwd=ROOT, capture_output=True, text=True
            )
            if shallow.stdout.strip() == "false":
                assert subprocess.run(commit, cwd=ROOT, capture_output=True).returncode == 0, found[2]


def test_benchmarks_page_is_written_from_its_records():
    data = json.loads(text(BENCHMARKS["RECORDS"]))
    assert BENCHMARKS["page"](data["head"], data["sections"]) == text(BENCHMARKS["PAGE"]), (
        "run python docs/benchmarks.py"
    )


@pytest.mark.parametrize(
    ("command", "reason"), [("onrw embed a.png", "not a benchmark"), ("onrw bench read --images FOLDER", "--images")]
)
def test_what_is_no_benchmark_is_not_measured(command, reason):
    with pytest.raises(ValueError, match=reason):
        BENCHMARKS["measure"]("Title", command, [])


def test_a_measurement_records_what_was_printed(monkeypatch):
    measure = BENCHMARKS["measure"]
    # The tests run with changes that are not committed, too.
    monkeypatch.setitem(measure.__globals__, "_git", lambda *words: "abc1234" if "rev-parse" in words else "")
    record = measure("Memory", "onrw bench memory --help", [])  # a benchmark proper takes too long here
    section = BENCHMARKS["page"](["# Benchmarks"], [record])
    assert "commit abc1234: `onrw bench memory --help`" in section
    assert "usage: onrw bench memory" in section and "Wire format" not in section
    monkeypatch.setitem(measure.__globals__, "_git", lambda *words: " M onrw_core/api.py")
    with pytest.raises(ValueError, match="not committed"):
        measure("Memory", "onrw bench memory", [])


def test_command_line_page_lists_every_command():
    from onrw_core.commands.cli import COMMANDS

    page = text(ROOT / "docs" / "command-line.md")
    for command in COMMANDS:
        words = "bench ..." if command.words[0] == "bench" else " ".join(command.words)
        assert f"`onrw {words}`" in page or f"`onrw {words}" in page, words


def test_options_page_lists_every_option():
    options = runpy.run_path(str(ROOT / "docs" / "options.py"))
    assert text(options["PAGE"]) == options["page"](), "run python docs/options.py"
