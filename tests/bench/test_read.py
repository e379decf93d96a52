"""`onrw bench read`: finds what it marked, and nothing else."""

import json

import numpy as np
import torch
from PIL import Image

from onrw_core.bench import read as bench
from onrw_core.commands.cli import main


def test_counts_photos_and_finds_the_marked_half(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "SIZE", 192)
    monkeypatch.setattr(bench, "LARGE", 256)
    monkeypatch.setattr(bench, "PSNR", 36.0)
    for i in range(4):
        picture = np.random.default_rng(i).normal(128, 8, (192, 192, 3))
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(tmp_path / f"{i}.png")
    before = torch.get_num_threads()
    assert main(["bench", "read", "--images", str(tmp_path), "--threads", "1", "--json", str(tmp_path / "r.json")]) == 0
    torch.set_num_threads(before)
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert [row["photos"] for row in rows.values()] == [4, 4, 2, 1]
    assert [row["detected"] for row in rows.values()] == [0.5, 0.5, 0, 0]
    assert "plain, several at a time" in capsys.readouterr().out
