"""`onrw bench sensitivity`: constants are changed for a row alone, and finished rows are kept."""

import json

import numpy as np
import pytest
from PIL import Image

from onrw_core.bench import sensitivity
from onrw_core.commands.cli import main
from onrw_core.extractors.keyed import extractor


@pytest.fixture
def folder(tmp_path):
    pixels = np.random.default_rng(0).normal(128, 20, (16, 16, 3)).clip(0, 255).astype(np.uint8)
    (tmp_path / "photos").mkdir()
    Image.fromarray(pixels).resize((96, 96), Image.Resampling.BICUBIC).save(tmp_path / "photos" / "a.png")
    return tmp_path


def test_every_row_has_its_own_constant(folder, capsys, monkeypatch):
    monkeypatch.setattr(sensitivity, "CONSTANTS", {"STRENGTH_WEIGHT": (0.0, 5.0)})
    monkeypatch.setattr(sensitivity, "ATTACKS", ("jpeg=70",))
    before = extractor.STRENGTH_WEIGHT
    words = ["bench", "sensitivity", "--images", str(folder / "photos"), "--size", "96", "--iterations", "2"]
    words += ["--out", str(folder / "out")]
    assert main(words) == 0 and before == extractor.STRENGTH_WEIGHT
    rows = json.loads((folder / "out" / "report.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["SHARPNESS = 6", "STRENGTH_WEIGHT = 0", "STRENGTH_WEIGHT = 5"]
    assert len({row["decile"] for row in rows}) == 3
    table = capsys.readouterr().out
    assert "STRENGTH_WEIGHT = 5" in table and "points of bits" in table
    monkeypatch.setattr(sensitivity, "embed", None)  # its rows are there
    assert main(words) == 0 and capsys.readouterr().out == table
