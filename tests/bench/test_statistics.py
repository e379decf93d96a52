"""Intervals by photo, presence, margins beside peers, and where purification takes the mark."""

import math

import numpy as np
import pytest

from onrw_core.bench.report import against, purification_curve
from onrw_core.bench.statistics import bootstrap, by_photo, present, public_summary, summary
from onrw_core.bench.systems import AtQuality, Onrw, System
from onrw_core.stages.noise_optimisation import PRESETS


def reading(photo, label, accuracy, presence=-9.0, suite="onrw12"):
    return {
        "photo": photo, "label": label, "suite": suite, "accuracy": accuracy, "word": False, "message": False,
        "seconds": 1.0, "log10_match": -9.0, "log10_presence": presence,
    }  # fmt: skip


class Peer(System):
    name = "RivaGAN"
    num_bits = 32
    settings = mark = read = None


class Decoder:
    num_bits = 32

    def __init__(self, name):
        self.name = name


def ours(name, extractor, like=None, quality=90.0):
    return Onrw(name, Decoder(extractor), PRESETS["quick"].with_(quality=quality), None, like=like)


def test_bootstrap_covers_the_mean():
    rng = np.random.default_rng(1)
    inside = [low <= 0 <= high for low, high in (bootstrap(rng.normal(size=20)) for _ in range(60))]
    assert 0.8 < np.mean(inside) <= 1
    assert bootstrap([0.2, 0.4, 0.9]) == bootstrap([0.2, 0.4, 0.9])
    assert all(map(math.isnan, bootstrap([1.0])))
    low, high = bootstrap([[0, 2], [1, 2], [2, 2]], lambda rows: rows.mean(0)[0] * rows.mean(0)[1])
    assert 0 <= low < 2 < high <= 4


def test_presence_or_the_match_in_its_place():
    assert present(reading("a", "x", 1), 1e-6) and not present(reading("a", "x", 1, -5.0), 1e-6)
    assert present(reading("a", "x", 1, None), 1e-6)
    assert by_photo([reading("a", "x", 1), reading("a", "y", 0.5), reading("b", "x", 0.5)]) == {"a": 0.75, "b": 0.5}


def test_purification_is_a_curve():
    records = [
        reading(photo, f"purify={sigma:g}", 1, presence, "regeneration")
        for photo, values in {"a": (-9, -7, -1), "b": (-9, -3, 0)}.items()
        for sigma, presence in zip((0.1, 0.5, 1.0), values, strict=True)
    ]
    found = purification_curve([*records, reading("a", "jpeg=50", 1)])
    assert [(p["sigma"], p["present"]) for p in found["curve"]] == [(0.1, 1), (0.5, 0.5), (1, 0)]
    assert found["lost_at"] == pytest.approx(0.5) and purification_curve(records[:0]) is None


def test_margins_beside_peers():
    peer = Peer()
    systems = [ours("keyed", "keyed"), ours("weak", "keyed"), ours("driven", "rivagan", peer), ours("other", "hidden")]
    systems.append(peer)
    psnr = {"keyed": 42.0, "weak": 38.0, "driven": 40.5, "other": 42.0, "RivaGAN": 40.5}
    values = {"keyed": (1.0, 0.99), "weak": (1, 1), "driven": (0.9, 0.95), "other": (1, 1), "RivaGAN": (0.95, 0.995)}
    readings = {
        name: [reading(p, label, v) for p in "abc" for label, v in zip(("crop", "jpeg"), pair, strict=True)]
        for name, pair in values.items()
    }
    rows = [
        {
            "name": s.name,
            "psnr": psnr[s.name],
            "attacks": {k: summary(r for r in readings[s.name] if r["label"] == k) for k in ("crop", "jpeg")},
            "suites": {"onrw12": {}},
        }
        for s in systems
    ]
    pairs = {pair["system"]: pair for pair in against(systems, rows, readings)}
    assert set(pairs) == {"keyed", "driven"}  # "weak" is more visible, and "other" is not RivaGAN's decoder
    assert pairs["keyed"]["suites"]["onrw12"]["margin"] == pytest.approx(0.0225)
    assert pairs["keyed"]["lowest"] == {"attack": "jpeg", "margin": pytest.approx(-0.005)}
    assert pairs["driven"]["short"] == ["crop", "jpeg"]
    assert pairs["driven"]["suites"]["onrw12"]["interval"] == pytest.approx((-0.0475, -0.0475))


def test_peers_at_a_quality_are_compared_with_ours_of_that_quality():
    peer = Peer()
    systems = [ours("at 80", "keyed", quality=80.0), ours("at 90", "keyed", quality=90.0), AtQuality(peer, 90.0)]
    readings = {
        s.name: [reading(p, "crop", v) for p, v in zip("abcd", values, strict=True)]
        for s, values in zip(systems, ((1, 1, 1, 1), (0.9, 0.9, 1, 1), (0.9, 1, 0.9, 1)), strict=True)
    }
    rows = [
        {"name": s.name, "psnr": 50.0 - i, "attacks": {"crop": {}}, "suites": {"onrw12": {}}}
        for i, s in enumerate(systems)
    ]
    (pair,) = against(systems, rows, readings)
    assert (pair["system"], pair["peer"]) == ("at 90", "RivaGAN quality 90")
    assert (
        pair["lowest"] == {"attack": "crop", "margin": pytest.approx(0)} and pair["short"] == []
    )  # within its interval


def test_what_the_public_layer_said():
    def record(found, label, presence=-9.0):
        return reading("a", "x", 1, presence) | {"public": {"found": found, "label": label, "log10_p": -8.0}}

    assert public_summary([reading("a", "x", 1)], "none") is None
    records = [record(True, "none"), record(True, "digitalCapture"), record(True, None), record(False, None, -1.0)]
    figures = public_summary([*records, reading("a", "x", 1)], "none")
    assert figures == {"n": 4, "found": 0.75, "right": 0.25, "without": 0.25, "wrong": 1}
