"""The comparison of spaces: one small run that resumes, and its figures."""

import argparse
import json
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from onrw_core.attacks import MIXES
from onrw_core.bench import spaces
from onrw_core.extractors.keyed.extractor import KeyedExtractor
from onrw_core.mini.weights import UNET_FILE, WEIGHTS
from onrw_core.stages.noise_optimisation import PRESETS

pytestmark = pytest.mark.skipif(not (WEIGHTS / UNET_FILE).exists(), reason="the embedded model's weights are not there")


@pytest.fixture
def folders(tmp_path):
    for seed, name in enumerate(("images/a", "images/b", "train/c")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        small = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(seed))
        image = F.interpolate(small, size=128, mode="bicubic").clamp(0.1, 0.9)[0]
        Image.fromarray((image.permute(1, 2, 0) * 255).byte().numpy()).save(tmp_path / f"{name}.png")
    return tmp_path


def arguments(folder, *more):
    parser = argparse.ArgumentParser()
    spaces.add_arguments(parser)
    words = ["--images", folder / "images", "--train", folder / "train", "--out", folder / "out", "--tune", "1"]
    words += ["--size", "128", "--iterations", "2", "--suite", "regeneration", "--purify", "0.1", "1"]
    return parser.parse_args([str(word) for word in [*words, *more]])


def test_compares_and_resumes(folders, monkeypatch, capsys):
    read = KeyedExtractor.read
    monkeypatch.setattr(KeyedExtractor, "read", lambda self, image, **_: read(self, image, search=False))
    more = ("--variants", "pixel", "noise", "--mixes", "all")
    chart = find_spec("matplotlib") is not None
    assert spaces.run(arguments(folders, *more, *([] if chart else ["--no-chart"]))) == 0
    first = json.loads((folders / "out" / "report.json").read_text())
    rows = {(row["variant"], row["budget"]): row for row in first["rows"]}
    assert list(rows) == [("pixel", "iterations"), ("noise", "iterations"), ("pixel", "time"), ("noise", "time")]
    assert rows["noise", "time"]["iterations"] == rows["pixel", "iterations"]["iterations"] == 2
    assert rows["pixel", "time"]["iterations"] >= 2  # the UNet takes longer than nothing
    noise = rows["noise", "iterations"]
    assert set(noise["tried"]) == {"0.1", "0.2", "0.4"} and str(noise["rate"]) in noise["tried"]
    assert abs(noise["psnr"] - 42) < 0.5
    figures, pixel = noise["suites"]["regeneration"], rows["pixel", "iterations"]["suites"]["regeneration"]
    assert figures["interval"][0] <= figures["bit_accuracy"] <= figures["interval"][1]
    assert figures["margin"] == pytest.approx(figures["bit_accuracy"] - pixel["bit_accuracy"]) and "margin" not in pixel
    assert [point["sigma"] for point in noise["purification"]["curve"]] == [0.1, 1.0]
    assert "mix all, equal time" in capsys.readouterr().out
    assert (folders / "out" / "spaces.png").is_file() == chart

    def again(*_, **__):
        raise AssertionError("everything was cached")

    monkeypatch.setattr(spaces, "embed", again)
    monkeypatch.setattr(KeyedExtractor, "read", again)
    spaces.run(arguments(folders, *more, "--no-chart"))
    assert json.loads((folders / "out" / "report.json").read_text())["rows"] == first["rows"]


def test_training_photos_are_others(folders):
    args = arguments(folders)
    args.train = args.images
    with pytest.raises(ValueError, match="among --images"):
        spaces.run(args)


def test_what_differs_between_variants():
    trials = spaces.Trials(
        [], None, None, PRESETS["fast"], spaces.changes_of(0.7, 3), size=64, bits=32, seed=0, device="cpu", folder=None
    )
    for mix in MIXES:
        given = [trials.settings(name, mix, 0.1, 5) for name in spaces.VARIANTS]
        assert [(s.space, s.start_sigma, s.steps) for s in given[1:]] == [
            ("latent", PRESETS["fast"].start_sigma, 1),
            ("noise", PRESETS["fast"].start_sigma, 1),
            ("noise", 0.7, 3),
        ]
        assert len({s.with_(space="noise", start_sigma=1, steps=1) for s in given}) == 1
