"""`onrw bench false-positives`: its statistics, its cache, its table."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from onrw_core.bench import false_positives as bench
from onrw_core.commands.cli import main
from onrw_core.extractors.keyed.pilot_search import detect
from onrw_core.extractors.keyed.reader import read


@pytest.fixture
def folder(tmp_path):
    """Three photos of noise with edges, 96 x 128 pixels."""
    generator = np.random.default_rng(0)
    for i in range(3):
        picture = generator.integers(60, 190, (96, 128, 3)).astype(np.uint8)
        picture[:, 40:80] //= 2
        Image.fromarray(picture).save(tmp_path / f"photo{i}.png")
    return tmp_path


def test_readings_are_the_readers(folder):
    image = bench.unmarked(folder / "photo0.png", 0)[0]
    layers = [bench._layer(i, 0) for i in range(3)]
    found = bench._readings("plain", image, layers)
    for layer, log10_p in zip(layers, found, strict=True):
        best = read(image, layer, search=False)
        assert log10_p == pytest.approx(best.log10_p, abs=0.7)  # which may refine the geometry of one of them
    assert bench._readings("public", image, [])[0] == pytest.approx(detect(image).log10_p, abs=1e-4)
    assert -6 < bench._readings("key", image, layers[:1])[0] <= 0


def test_rates_and_intervals():
    uniform = np.log10(np.random.default_rng(0).uniform(size=(400, 100)))
    report = bench.calibration(uniform)
    assert report["readings"] == 40_000 and report["keys"] == 400
    for row in report["table"][:3]:
        assert row["rate"] == pytest.approx(row["nominal"], rel=0.2)
        assert row["low"] < row["rate"] < row["high"]
    # One photo that always cries wolf is one photo, however many readings it takes part in.
    uniform[:, 0] = -9
    row = bench.calibration(uniform)["table"][3]
    assert row["low"] < 2e-3 and row["high"] > 0.02


def test_command_resumes(folder, capsys, monkeypatch):
    words = ["bench", "false-positives", "--images", str(folder), "--out", str(folder / "out"), "--readings", "9"]
    words += ["--keys", "2", "--search-keys", "1", "--search-photos", "1", "--public-photos", "2"]
    words += ["--no-chart"]
    assert main(words) == 0
    table = capsys.readouterr().out
    assert "plain: 9 readings of 3 photos with 3 wrong keys" in table
    assert "search: 1 readings of 1 photos with 1 wrong keys" in table
    assert "public: 2 readings of 2 photos" in table
    report = json.loads((folder / "out" / "report.json").read_text())
    assert report["plain"]["readings"] == 9
    monkeypatch.setattr(bench, "_readings", None)  # its results are there
    assert main(words) == 0
    assert json.loads((folder / "out" / "report.json").read_text()) == report


def test_photos_are_changed_alike_each_time(folder):
    for i in range(3):
        first, how = bench.unmarked(folder / f"photo{i}.png", 0)
        again, same = bench.unmarked(folder / f"photo{i}.png", 0)
        assert how == same and torch.equal(first, again)


def test_bad_folder(tmp_path, capsys):
    assert main(["bench", "false-positives", "--images", str(tmp_path)]) == 2
    assert "no image" in capsys.readouterr().err
