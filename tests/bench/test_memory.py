import json

import pytest
import torch

pytest.importorskip("diffusers")

from onrw_core.bench import footprint as bench  # noqa: E402
from onrw_core.bench import shapes  # noqa: E402
from onrw_core.commands.cli import main  # noqa: E402
from onrw_core.stages.noise_optimisation import PRESETS  # noqa: E402

TINY = {
    "sample_size": 16,
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 4,
    "cross_attention_dim": 16,
}
TINY_VAE = shapes.VAE | {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1}


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(shapes.SHAPES, "sd15-random", TINY)
    monkeypatch.setattr(shapes, "VAE", TINY_VAE)


def test_counts_what_is_held():
    with bench.Footprint() as memory:
        first = torch.zeros(1000)
        view = first[10:]
        second = first + 1
        assert memory.bytes == 8000
        del second, first
        assert memory.bytes == 4000 and memory.peak == 8000
        del view
    assert memory.bytes == 0


def test_marking_by_recomputing_does_not_grow_with_the_steps(tiny):
    paper = PRESETS["paper"].with_(mask="none")
    few, many = (bench.footprint("sd15-random", 128, paper.with_(steps=steps)) for steps in (2, 8))
    assert many["iteration"] == pytest.approx(few["iteration"], rel=0.02)
    assert many["main_memory"] == pytest.approx(4 * few["main_memory"]) and few["main_memory"] > 0
    unet, vae = shapes.random_networks("sd15-random", torch.float16)
    size = sum(p.nbytes for network in (unet, vae) for p in network.parameters())
    assert few["weights"] == pytest.approx(size / bench.GIB)
    keeping = bench.footprint("sd15-random", 128, paper.with_(steps=2, checkpointing=False))
    assert keeping["iteration"] - keeping["weights"] > 2 * (few["iteration"] - few["weights"])


def test_command(tiny, tmp_path, capsys):
    report = tmp_path / "memory.json"
    words = ["bench", "memory", "--model", "sd15-random", "--size", "64", "--preset", "fast", "--json", str(report)]
    assert main(words) == 0
    (row,) = json.loads(report.read_text())["rows"]
    assert row["size"] == 64 and 0 < row["weights"] < row["original"] <= row["iteration"]
    assert "sd15-random" in capsys.readouterr().out


def test_measures_a_marking(tmp_path, capsys):
    report = tmp_path / "memory.json"
    words = ["bench", "memory", "--measure", "160x128", "--size", "64", "--iterations", "1", "--json", str(report)]
    assert main(words) == 0
    (row,) = json.loads(report.read_text())["rows"]
    assert (row["width"], row["height"], row["size"]) == (160, 128, 64)
    assert 0.2 < row["gigabytes"] < 1.5 and row["cpu_seconds"] > 0
    assert "160" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["bench", "memory", "--measure", "large"])
    assert "--measure: 'large'" in capsys.readouterr().err
