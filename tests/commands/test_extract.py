"""``onrw extract`` on folders: several photos at a time, in order, plain or with the search."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from onrw_core.commands.cli import main
from onrw_core.extractors.keyed import hypotheses
from onrw_core.extractors.keyed.extractor import KeyedExtractor
from onrw_core.payload.keys import Key
from onrw_core.payload.message import encode_id

KEY = Key(bytes(range(32)))


@pytest.fixture
def folder(tmp_path):
    """Photos 0 to 4 of noise with edges, of which the even ones are marked with their number; 3 is damaged."""
    KEY.save(tmp_path / "my.key")
    photos = tmp_path / "photos"
    photos.mkdir()
    extractor = KeyedExtractor(KEY, 48)
    for i in range(5):
        generator = np.random.default_rng(i)
        picture = generator.normal(128, 8, (192, 256, 3))
        picture[:, 100:] -= 40
        if i % 2 == 0:
            pattern = extractor.pattern(encode_id(f"00000{i}", KEY).bits, (192, 256))
            picture += 6 * pattern.numpy()[..., None]
        Image.fromarray(picture.clip(0, 255).round().astype(np.uint8)).save(photos / f"{i}.png")
    (photos / "3.png").write_bytes(b"no picture")
    return tmp_path


def test_folder_is_read_in_order(folder, capsys, monkeypatch):
    monkeypatch.setattr(hypotheses, "levels", None)  # what the search would call
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert main(["extract", str(folder / "photos"), "--key", str(folder / "my.key"), "--plain", "--json"]) == 1
    captured = capsys.readouterr()
    lines = [json.loads(line) for line in captured.out.splitlines()]
    assert [line["input"][-5] for line in lines] == ["0", "1", "2", "4"]
    assert [line["id"] for line in lines] == ["000000", None, "000002", "000004"]
    assert "3.png" in captured.err


def test_what_is_not_found_plainly_is_searched(folder, capsys, monkeypatch):
    searched = []
    levels = hypotheses.levels
    monkeypatch.setattr(hypotheses, "levels", lambda y: searched.append(y.shape) or levels(y))
    assert (
        main(["extract", *(str(folder / "photos" / f"{i}.png") for i in (0, 1)), "--key", str(folder / "my.key")]) == 0
    )
    first, second = capsys.readouterr().out.splitlines()
    assert "id 000000" in first and "nothing found" in second
    assert len(searched) == 2  # both projections of the second image
