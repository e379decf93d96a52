"""`onrw bench false-positives`: its statistics, its cache, its table."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from onrw_core.bench import false_positives as bench
from onrw_core.cli import main
from onrw_core.extractors.batch import presences
from onrw_core.extractors.carriers import BIT_COUNTS, DIMENSIONS, FREQUENCIES, Carriers
from onrw_core.extractors.proposals import PLAIN_SIDES, Proposal
from onrw_core.extractors.reader import Attempts, attempt_tiles
from onrw_core.keys import Key


def carriers(i: int) -> Carriers:
    return Carriers.from_key(Key(bytes([i]) * 32))


@pytest.fixture
def folder(tmp_path):
    """Three photos of noise with edges, 96 x 128 pixels."""
    generator = np.random.default_rng(0)
    for i in range(3):
        picture = generator.integers(60, 190, (96, 128, 3)).astype(np.uint8)
        picture[:, 40:80] //= 2
        Image.fromarray(picture).save(tmp_path / f"photo{i}.png")
    return tmp_path


def test_calibrated_on_coloured_tiles():
    """Presence under wrong keys, sync pattern and payload together, is as likely as it says."""
    generator = torch.Generator().manual_seed(0)
    gain = FREQUENCIES.float().norm(dim=1).pow(-0.7)
    tiles = torch.randn(60, DIMENSIONS, generator=generator) * torch.cat([gain, gain])
    p = np.concatenate([10 ** presences(tiles, carriers(i)).log10_p for i in range(60)])
    for level in (0.5, 0.1, 0.02):
        assert level / 1.4 < (p <= level).mean() < level * 1.4, level


def test_no_false_alarms_of_stripes():
    """Tiles whose energy lies along one line of frequencies: a determinant of 0 says nothing about them."""
    along = (FREQUENCIES[:, 1] == 0).float()
    generator = torch.Generator().manual_seed(0)
    tiles = torch.randn(20, DIMENSIONS, generator=generator) * torch.cat([along, along])
    p = np.concatenate([10 ** presences(tiles, carriers(i)).log10_p for i in range(60)])
    for level in (0.3, 0.1, 0.02):
        assert (p <= level).mean() < level * 1.4, level


def test_equals_the_reader_one_by_one():
    key = carriers(1)
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(1, 3, 128, 160, generator=generator)
    tiles, weights, searched = attempt_tiles(image, size=128, search=False)
    assert tiles.shape == (2, DIMENSIONS) and weights.tolist() == [0.5, 0.5] and not searched.any()
    mark = key.sync[BIT_COUNTS.index(64)] + key.payload[:64].sum(0) / 8
    marked = tiles[:1] + mark.float() * tiles.norm() * torch.tensor([[0.0], [0.2], [1.0]])
    found = presences(marked, key)
    one = Attempts(image, key).attempt(Proposal(0, None, 1.0, PLAIN_SIDES[0]))
    assert one.log10_p == pytest.approx(found.log10_p[0], abs=1e-5)
    assert one.log_sync == pytest.approx(found.log_sync[0], abs=1e-5)
    assert torch.allclose(one.tile, found.tile[0], atol=1e-5)
    assert BIT_COUNTS[found.count[2]] == 64 and found.log10_p[2] < -10


def test_attempts_share_by_their_weights():
    log10_p = np.array([-1.0, -3.0, -2.0, -0.1])
    combined = bench._combined(log10_p, np.log10([0.5, 0.25, 0.25, 1.0]), np.array([0, 3]))
    assert combined == pytest.approx([-3 - math.log10(0.25), -0.1])


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
    words += ["--keys", "2", "--search-keys", "1", "--no-chart"]
    assert main(words) == 0
    table = capsys.readouterr().out
    assert "plain: 9 readings of 3 photos with 3 wrong keys" in table
    assert "search: 3 readings of 3 photos with 1 wrong keys" in table
    report = json.loads((folder / "out" / "report.json").read_text())
    assert report["plain"]["readings"] == 9
    next((folder / "out").glob("plain-*/key-1.npy")).unlink()
    monkeypatch.setattr(bench, "attempt_tiles", None)  # its results are there
    assert main(words) == 0
    assert json.loads((folder / "out" / "report.json").read_text()) == report


def test_photos_are_changed_alike_each_time(folder):
    for i in range(3):
        first, how = bench.unmarked(folder / f"photo{i}.png", 0)
        again, same = bench.unmarked(folder / f"photo{i}.png", 0)
        assert how == same and torch.equal(first, again)


def test_bad_folder(tmp_path, capsys):
    assert main(["bench", "false-positives", "--images", str(tmp_path)]) == 2
    assert "no picture" in capsys.readouterr().err
