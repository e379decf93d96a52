import json

import numpy as np
import pytest
from PIL import Image

from onrw_core.commands import cli


def test_library_and_command_mark_the_same_photo(tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((96, 96), Image.Resampling.BICUBIC).save(tmp_path / "photos" / "a.png")
    words = ["--images", tmp_path / "photos", "--size", 64, "--iterations", 1, "--threads", 1]
    report = tmp_path / "report.json"
    assert cli.main(["bench", "command", *map(str, words), "--json", str(report)]) == 0
    rows = json.loads(report.read_text())["rows"]
    assert all(len(runs) == 1 and runs[0]["seconds"] > 0 and runs[0]["product_gflops"] > 0 for runs in rows.values())
    assert rows["of that, marking"][0]["seconds"] < rows["onrw embed"][0]["seconds"]
    assert rows["pipeline.embed"][0]["cpu_seconds"] > 0
    assert "onrw embed" in capsys.readouterr().out


def test_a_folder_without_photos(tmp_path, capsys):
    assert cli.main(["bench", "command", "--images", str(tmp_path)]) == 2
    assert "no photos in it" in capsys.readouterr().err


@pytest.fixture(autouse=True)
def threads():
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
