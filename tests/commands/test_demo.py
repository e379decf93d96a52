"""The demo: its files, its readings, its overview."""

import json
import re

import pytest
import torch
from PIL import Image

from onrw_core import pipeline
from onrw_core.attacks import parse
from onrw_core.commands import cli, demo
from onrw_core.models import Loaded
from onrw_core.payload.keys import Key
from onrw_core.pipeline import Marked
from onrw_core.stages.quality import Judgement


def unmarked(image, model, autoencoder, extractor, bits, **_):
    """Stands in for marking: nothing is there to be found."""
    return Marked(image, bits, Judgement(90.0, 2.0, 0.8), 42.0, 42.0, 0.99, 1, 0.1, (), image[None] * 0, None)


def interrupted(*_):
    raise KeyboardInterrupt


def test_files_and_readings(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pipeline, "embed", unmarked)
    monkeypatch.setattr(demo, "load_model", lambda *_: Loaded(None, None, lambda prompt: None))
    monkeypatch.setattr(demo, "ATTACKS", (("as it is", "identity"), ("half cropped away", "crop=0.5")))
    assert cli.main(["demo", "-o", str(tmp_path), "--size", "64"]) == 0
    names = {path.name for path in tmp_path.iterdir()}
    wanted = {"original.png", "marked.png", "overview.png", "readings.json", "demo.key"}
    assert names == wanted | {"attacked-00-identity.png", "attacked-01-crop.png"}
    report = json.loads((tmp_path / "readings.json").read_text())
    assert [reading["detected"] for reading in report["readings"]] == [False] * 4
    out = capsys.readouterr().out
    assert "2 of 4 readings right" in out and "nothing found" in out


def test_the_demo_marks_and_reads_for_real(tmp_path, capsys):
    """Nothing is replaced: the embedded model marks the bundled photo, and nearly every reading is right."""
    Key(bytes(range(32))).save(tmp_path / "demo.key")  # the same patterns in every run
    assert cli.main(["demo", "-o", str(tmp_path), "--size", "256", "--iterations", "8"]) == 0
    right, total = map(int, re.search(r"(\d+) of (\d+) readings right", capsys.readouterr().out).groups())
    assert total >= 10 and right >= total - 4  # a quarter of the usual area, a third of the iterations
    marked, original = (Image.open(tmp_path / name).convert("RGB") for name in ("marked.png", "original.png"))
    assert marked.size == original.size and marked.tobytes() != original.tobytes()


def test_the_key_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "load_model", interrupted)
    before = Key.new()
    before.save(tmp_path / "demo.key")
    assert cli.main(["demo", "-o", str(tmp_path)]) == 130
    assert Key.load(tmp_path / "demo.key") == before


def test_files_of_others_are_left_alone(tmp_path, capsys):
    (tmp_path / "marked.png").write_bytes(b"mine")
    assert cli.main(["demo", "-o", str(tmp_path)]) == 2
    assert "other files" in capsys.readouterr().err
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"mine"]


@pytest.mark.parametrize("text", [text for _, text in demo.ATTACKS])
def test_attacks_exist(text):
    assert parse(text)(torch.rand(1, 3, 96, 96)).images.ndim == 4


def test_verdicts():
    image = torch.zeros(3, 64, 64)
    read = demo.Outcome("t", "a", image, True, -20.0, demo.ID, demo.ID)
    lost = demo.Outcome("t", "a", image, False, -0.5, None, demo.ID)
    garbled = demo.Outcome("t", "a", image, True, -9.0, None, demo.ID)
    false_alarm = demo.Outcome("t", "a", image, True, -9.0, None, None)
    silent = demo.Outcome("t", "a", image, False, -0.1, None, None)
    assert [o.right for o in (read, lost, garbled, false_alarm, silent)] == [True, False, False, False, True]
    assert read.words == "id c0ffee (p = 1e-20)" and lost.words == "nothing found (p = 0.32)"
    page = demo.overview(image, image, "42 dB", [read, lost, garbled], [silent])
    assert isinstance(page, Image.Image) and page.width == demo.WIDTH


def test_photo_is_there():
    assert Image.open(demo.PHOTO).size == (512, 512)
