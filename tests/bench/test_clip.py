"""`onrw bench clip`: the clips, the flicker, and the whole benchmark on small frames."""

import argparse
import json

import pytest
import torch
from PIL import Image

from onrw_core.bench import clip

SIZE = 128


def test_a_residual_that_follows_the_scene_does_not_flicker_along_its_motion():
    scene = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0)) / 255
    residuals = [scene[..., 4 * i : 4 * i + 64] for i in range(4)]
    still, along = clip._flicker(residuals, 4)
    assert along == pytest.approx(0, abs=1e-6) and still > 0.3


def test_the_clips_move():
    photo = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0))
    frames, step = clip._pan(photo, 4)
    assert step > 0 and torch.equal(frames[1][..., :-step], frames[0][..., step:])
    frames, step = clip._over(photo, torch.zeros(3, 8, 8), 3)
    assert step == 0 and [int((frame.sum(0) == 0).nonzero()[0, 1]) for frame in frames] == [0, 38, 76]


def test_small_clips(tmp_path, capsys):
    pytest.importorskip("av")
    for name in "ab":
        noise = torch.randint(
            0, 256, (24, 32, 3), generator=torch.Generator().manual_seed(ord(name)), dtype=torch.uint8
        )
        Image.fromarray(noise.numpy()).resize((192, SIZE)).save(tmp_path / f"{name}.png")
    parser = argparse.ArgumentParser()
    clip.add_arguments(parser)
    words = ["--images", tmp_path, "--size", SIZE, "--frames", 3, "--separate", 2, "--iterations", 3, "--crf", 10]
    words += ["--triples", 1, "--json", tmp_path / "report.json"]
    assert clip.run(parser.parse_args(list(map(str, words)))) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report) == 2 and "flicker at the same pixels" in capsys.readouterr().out
    for row in report.values():
        assert row["flicker"]["clip"][1] < row["flicker"]["apart"][1] and row["quality"] > 88
        assert set(row["averaging"]) == {"1"} and 0 <= row["read"]["10"]["share"] <= 1
