"""``onrw verify``: the report in words and as a page."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from onrw_core.commands import cli
from onrw_core.commands.html_report import STYLE, drawing, render
from onrw_core.commands.report import Report, certainty, position
from onrw_core.extractors.reading import Detection, Pose, Reading
from onrw_core.imaging import files
from onrw_core.imaging.geometry import Geometry
from onrw_core.imaging.source_type import with_source_type
from onrw_core.payload.keys import Key
from onrw_core.payload.message import Decoded
from onrw_core.payload.registry import Registry

from .test_extract import KEY, folder  # noqa: F401  (a fixture)


@pytest.fixture
def onrw(folder, monkeypatch, capsys):  # noqa: F811
    monkeypatch.chdir(folder)
    monkeypatch.delenv("ONRW_KEY", raising=False)

    def run(*words):
        try:
            code = cli.main([str(word) for word in words])
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return run


def test_report_of_a_marked_picture(onrw):
    registry = Registry.create("ids.db")
    registry.add("000002", note="for <Ann>")
    code, out, err = onrw("verify", "photos/2.png", "--key", "my.key", "--registry", "ids.db", "--html", "report.html")
    assert code == 0 and err == ""
    assert out.startswith("2.png: Marked with this key: the id 000002.") and "for <Ann>" in out
    assert re.search(r"How sure: +only 1 in 10\^\d+ unmarked", out)
    assert "neither turned nor scaled; it shows 256 x 192 pixels" in out
    page = open("report.html", encoding="utf-8").read()
    assert (
        "the id 000002" in page and "for &lt;Ann&gt;" in page and "<Ann>" not in page and '<main class="found">' in page
    )


def test_report_of_an_unmarked_picture(onrw):
    code, out, _ = onrw("verify", "photos/1.png", "--key", "my.key")
    assert code == 0 and "No watermark found." in out and "no evidence" in out and "Position" not in out


def test_report_without_a_key(onrw):
    code, out, _ = onrw("verify", "photos/0.png")
    assert code == 0 and "key" in out.splitlines()[0] and "How sure" not in out
    code, _, err = onrw("verify", "photos/0.png", "--registry", "ids.db")
    assert code == 2 and "--key" in err


def test_bad_files_and_existing_reports(onrw):
    for file, reason in (("photos/3.png", "not an image"), ("none.png", "no such file")):
        code, out, err = onrw("verify", file, "--key", "my.key", "--html", "new.html")
        assert code == 2 and reason in err and out == ""
    code, _, err = onrw("verify", "photos/0.png", "--key", "my.key", "--html", "my.key")
    assert code == 2 and "is the file of --key" in err and Key.load("my.key") == KEY
    Path("old.html").write_text("mine", encoding="utf-8")
    code, _, err = onrw("verify", "photos/0.png", "--key", "my.key", "--html", "old.html")
    assert code == 2 and "already exists" in err and Path("old.html").read_text(encoding="utf-8") == "mine"


def reading(log10_p, **more):
    return Reading(log10_p < -6, log10_p, torch.zeros(48), Decoded(), 0.1, **more)


def unread(name, content, public=None):
    """The report of a file that nothing was read from, without the time of a search."""
    nothing = Detection(False, None, None, -0.3, None)
    return Report(name, files.load(name, content), None, None, None, public or nothing)


def test_public_layer(tmp_path):
    content = png(tmp_path)
    found = Detection(True, "trainedAlgorithmicMedia", 2, -9.0, None)
    report = unread("a.png", content, found)
    assert report.headline == "Marked with ONRW; only its key shows whose it is." and report.found
    assert dict(report.rows())["Public label"].startswith("AI-generated")
    assert dict(unread("a.png", content, replace(found, label=None)).rows())["Public label"].endswith("cannot be read")
    assert unread("a.png", content).headline == "No watermark found without a key."


def test_words():
    assert certainty(-54.3, True) == "only 1 in 10^54 unmarked images would give this result"
    assert certainty(-0.7, False).startswith("1 in 5 unmarked images would give this result, so")
    pose = Pose(rotation=-3.02, scale=0.5, shift=(0, 0), flipped=True)
    assert position(pose, (100, 200)) == (
        "mirrored, turned by -3.0 degrees, scaled to 50%; it shows 400 x 200 pixels of the marked frame"
    )


def test_a_colour_negative_is_said(tmp_path):
    pose = Pose(0.0, 1.0, (0.0, 0.0), False)
    report = replace(unread("a.png", png(tmp_path)), key="", reading=reading(-54.3, pose=pose, negative=True))
    assert dict(report.rows())["Position"].startswith("colour negative; it shows 80 x 80")


def test_what_the_metadata_say(tmp_path):
    image = files.from_pil(Image.new("RGB", (80, 80)))
    image.info["xmp"] = with_source_type(b"", "trainedAlgorithmicMedia")
    files.save(tmp_path / "a.jpg", image.rgb, image)
    rows = dict(unread("a.jpg", files.read(tmp_path / "a.jpg")).rows())
    assert rows["Metadata"].startswith("AI-generated") and "everybody can" in rows["Metadata"]
    assert "Metadata" not in dict(unread("a.png", png(tmp_path)).rows())


def test_names_are_escaped(tmp_path):
    content = png(tmp_path)
    page = render(unread("<img src=x onerror=alert(1)>.png", content))
    assert "<img" not in page and "&lt;img" in page


def test_page_is_complete_in_itself(tmp_path):
    """No script, nothing from elsewhere, and its own style is what its policy allows."""
    page = render(unread("a.png", png(tmp_path)))
    assert "<script" not in page and "http:" not in page and "https:" not in page
    assert not re.search(r'(?:src|href)="(?!data:image/jpeg;base64,)', page)
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    assert (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'" in page and f"<style>{STYLE}</style>" in page
    )


def test_drawing_lies_as_the_geometry_says():
    """The corner of an image that was turned by 90 degrees and halved is where the geometry maps it."""
    geometry = Geometry.rotation(90, (64, 128)) @ Geometry.scale(2)
    svg = drawing(torch.rand(3, 64, 128, generator=torch.Generator().manual_seed(0)), geometry)
    a, b, c, d, e, f = map(float, re.search(r'matrix\((.*?)\)"', svg)[1].split())
    expected = geometry.apply(torch.tensor([[128.0, 64.0]]))[0].tolist()
    assert [a * 128 + c * 64 + e, b * 128 + d * 64 + f] == pytest.approx(expected, abs=1e-2)
    assert f"{expected[0]:.1f},{expected[1]:.1f}" in re.search(r'points="(.*?)"', svg)[1].split()


def test_thumbnail_has_no_metadata(tmp_path):
    image = Image.new("RGB", (1000, 800), "red")
    exif = Image.Exif()
    exif[0x010E] = "secret place"
    image.save(tmp_path / "a.jpg", exif=exif)
    page = render(unread("a.jpg", files.read(tmp_path / "a.jpg")))
    content = base64.b64decode(re.search(r"base64,([^\"]*)", page)[1])
    assert b"secret place" not in content and len(content) < 50_000


def test_fields_of_the_command_are_untouched(onrw):
    """`verify` is for people; the JSON of `extract` is as it was."""
    line = json.loads(onrw("extract", "photos/0.png", "--key", "my.key", "--json")[1])
    assert list(line) == ["input", "detected", "log10_p", "bits", "text", "id", "geometry", "seconds"]


def png(tmp_path):
    Image.new("RGB", (80, 80), "blue").save(tmp_path / "a.png")
    return files.read(tmp_path / "a.png")
