"""``onrw detect``: label and presence of the public layer, in words and as JSON."""

import json

import pytest
import torch

from onrw_core.commands.cli import main
from onrw_core.commands.detect import MEANINGS
from onrw_core.extractors import LABELS
from onrw_core.extractors.keyed.extractor import KeyedExtractor
from onrw_core.imaging import files
from onrw_core.payload.keys import Key


@pytest.fixture
def folder(tmp_path):
    grain = 0.5 + 0.03 * torch.randn(3, 192, 256, generator=torch.Generator().manual_seed(1))
    extractor = KeyedExtractor(Key(bytes(32)), 48, "trainedAlgorithmicMedia")
    mark = extractor.pattern(torch.ones(48), (192, 256), pilot_share=1.0)
    files.save(tmp_path / "a.png", (grain + 0.015 * mark).clamp(0, 1))
    files.save(tmp_path / "b.png", grain.clamp(0, 1))
    return tmp_path


def test_labels_are_read_without_a_key(folder, capsys):
    assert main(["detect", str(folder / "a.png"), str(folder / "b.png"), "--plain"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert "carries an ONRW watermark" in first and "AI-generated" in first and "only its key" in first
    assert "no ONRW watermark found" in second
    assert main(["detect", str(folder), "--plain", "--json"]) == 0
    a, b = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (a["found"], a["label"], a["version"]) == (True, "trainedAlgorithmicMedia", 2) and a["log10_p"] < -6
    assert (b["found"], b["label"], b["geometry"]) == (False, None, None)


def test_every_label_has_words():
    assert set(MEANINGS) == set(LABELS)


def test_a_label_needs_a_public_layer(folder, capsys):
    words = ["embed", str(folder / "b.png"), "-o", str(folder / "c.png"), "--text", "a"]
    Key(bytes(range(32))).save(folder / "my.key")
    assert main([*words, "--key", str(folder / "my.key"), "--no-public", "--label", "digitalCapture"]) == 2
    assert "--no-public: leaves no place" in capsys.readouterr().err
