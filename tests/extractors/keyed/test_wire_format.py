"""Wire format 2 is pinned: the golden values of docs/wire-format-2.md."""

import re
from pathlib import Path

import pytest
import torch

from onrw_core.extractors.keyed.band import FREQUENCIES
from onrw_core.extractors.keyed.public_layer import PILOT_DIMENSIONS, PILOT_FREQUENCIES, SYNC, WORDS
from onrw_core.extractors.keyed.secret_layer import SecretLayer
from onrw_core.payload.keys import Key

PAGE = (Path(__file__).parents[3] / "docs" / "wire-format-2.md").read_text(encoding="utf-8")
KEY = Key(bytes(range(32)))
LAYER = SecretLayer.from_key(KEY)
ROWS = {
    "sync, 32 bits": LAYER.sync[0],
    "sync, 128 bits": LAYER.sync[4],
    "carrier 0": LAYER.payload[0],
    "carrier 47": LAYER.payload[47],
    "carrier 127": LAYER.payload[127],
    "sync, 32 bits, in tile (1, 2)": LAYER.with_phases(LAYER.sync[0], 1, 1, (1, 2))[0, 0],
    "public sync (of its 64)": SYNC[PILOT_DIMENSIONS],
    "public word 0 (of its 64)": WORDS[0, PILOT_DIMENSIONS],
    "public word 1 (of its 64)": WORDS[1, PILOT_DIMENSIONS],
    "public word 31 (of its 64)": WORDS[31, PILOT_DIMENSIONS],
}


@pytest.mark.parametrize("name", ROWS)
def test_rows(name):
    line = re.search(rf"^\| {re.escape(name)} \| (.*) \| (.*) \|$", PAGE, re.MULTILINE)
    golden = [float(value) for value in f"{line[1]} {line[2]}".split()]
    row = ROWS[name]
    assert torch.cat([row[:4], row[-1:]]).tolist() == pytest.approx(golden, abs=2e-9)


def test_phases_and_place():
    assert LAYER.phases[0, 0, :8].tolist() == [2, 2, 2, 0, 0, 3, 2, 1]
    assert LAYER.phases[0, 1, :8].tolist() == [0, 3, 0, 2, 0, 2, 1, 0]
    assert LAYER.phases[31, 31, -4:].tolist() == [1, 1, 2, 2]
    assert int(LAYER.phases.long().sum()) == 279812
    assert SecretLayer.place(KEY, bytes(32)) == (27, 0)


def test_order_of_the_band():
    assert FREQUENCIES[:3].tolist() == [[2, 0], [3, 0], [4, 0]] and FREQUENCIES[-1].tolist() == [4, 10]
    assert PILOT_DIMENSIONS[:4].tolist() == [14, 15, 20, 21]


def test_frequencies_of_the_pilot():
    orbits = re.search(r"absolute values, sorted, are (.*?): whole orbits", PAGE, re.DOTALL)[1]
    named = {(int(a), int(b)) for a, b in re.findall(r"\((\d+), (\d+)\)", orbits)}
    assert {tuple(sorted(map(abs, k))) for k in PILOT_FREQUENCIES.tolist()} == named and len(named) == 8
