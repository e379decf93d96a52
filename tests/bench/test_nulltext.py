import math

import pytest
import torch
import torch.nn.functional as F

from onrw_core.bench.nulltext import cases, measure, table
from onrw_core.bench.photos import Photo
from onrw_core.commands.cli import main
from onrw_core.diffusion.model import Autoencoder

from ..dummies import DummyModel, prompt


class Pooling(Autoencoder):
    """Four channels at an eighth of the size."""

    name, factor, channels = "pooling", 8, 4

    def encode(self, images):
        means = F.avg_pool2d(images, 8) * 2 - 1
        return torch.cat([means, means[:, :1]], 1)

    def decode(self, latents):
        return F.interpolate(latents[:, :3] / 2 + 0.5, scale_factor=8)


def photo(seed: int) -> Photo:
    generator = torch.Generator().manual_seed(seed)
    return Photo(f"noise{seed}", torch.rand(3, 64, 80, generator=generator), f"number {seed}")


def test_null_text_row_says_how_much_of_the_gap_is_closed():
    rows = list(
        measure(
            DummyModel(),
            Pooling(),
            lambda text: prompt(len(text)),
            [photo(0), photo(1)],
            cases(4.5, [0, 10], [0.1]),
            size=64,
            steps=5,
            start_sigma=4.0,
        )
    )
    plain = {(r.case.at, r.case.guidance): r for r in rows if r.case.method == "ddim"}
    tuned = {(r.case.at, r.case.inner_steps): r for r in rows if r.case.method == "null-text"}
    assert len(plain) == len(tuned) == 4
    for at in ("source", "target"):
        floor, drift = plain[at, 1.0], plain[at, 4.5]
        assert floor.mse < drift.mse and floor.psnr > drift.psnr and drift.closed is None
        assert tuned[at, 0].closed == pytest.approx(0, abs=1e-3)
        row = tuned[at, 10]
        assert row.closed == pytest.approx((drift.mse - row.mse) / (drift.mse - floor.mse))
        assert row.closed > 0.5 and row.worst <= row.closed + 0.2
    exact = next(r for r in rows if r.case.method == "fixed-point" and r.case.guidance == 1)
    assert exact.mse < 0.01 * plain["source", 1.0].mse and math.isfinite(exact.noise)
    lines = list(table(rows))
    assert len(lines) == len(rows) + 2 and len({line.count("|") for line in lines}) == 1


def test_command_has_help(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["bench", "nulltext", "--help"])
    assert "example:" in capsys.readouterr().out
