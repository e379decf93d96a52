"""Figures of the embedded model: that they measure what they say, on an untrained tiny one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from onrw_core.mini import Mini, MiniAutoencoder, MiniModel
from onrw_core.mini import evaluate as figures_of
from onrw_core.mini.autoencoder import PatchAutoencoder, principal_patches
from onrw_core.mini.text import TextEncoder, Tokenizer
from onrw_core.mini.unet import UNet, UNetConfig


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for k in range(2):
        coarse = Image.fromarray(rng.integers(0, 255, (6, 8, 3), np.uint8))
        coarse.resize((120, 90), Image.Resampling.BICUBIC).save(tmp_path / f"{k}.png")
    (tmp_path / "captions.tsv").write_text("0.png\tclouds of colour\n1.png\tmore clouds\n")
    return tmp_path


@pytest.fixture
def mini(folder) -> Mini:
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_captions(["clouds of colour"])
    unet = UNet(UNetConfig(channels=8, width=32, multiples=(1, 1), attention=(False, True)))
    autoencoder = PatchAutoencoder(latent_channels=8, stem=8, encoder=8, decoder=8, head=8)
    images = torch.cat([figures_of.read_square(folder / f"{k}.png", 64) for k in range(2)])
    autoencoder.initialise_linear(*principal_patches(images, 8))
    return Mini(MiniModel(unet), MiniAutoencoder(autoencoder), tokenizer, TextEncoder(len(tokenizer)))


def test_figures_of_an_untrained_model(mini, folder, monkeypatch, tmp_path):
    monkeypatch.setattr(figures_of, "WORKING_SIZE", 64)
    figures = figures_of.evaluate(mini, folder)
    assert figures["photos"] == 2
    assert figures["autoencoder_256"]["psnr"] >= figures["autoencoder_256"]["psnr_worst"] > 20
    assert 0.5 < figures["autoencoder_512"]["ssim"] <= 1
    # v = 0 means eps_hat = sigma x / (1 + sigma^2): nothing known at small sigma, nearly everything at large.
    errors = list(figures["noise_error"].values())
    assert errors[0] == pytest.approx(1.0, abs=0.05) and errors[-1] < 0.1
    # An untrained network ignores its prompt, so guidance changes nothing.
    assert figures["round_trip"]["latent_1"] == pytest.approx(figures["round_trip"]["latent_guided"], abs=1e-3)

    card = tmp_path / "card.md"
    card.write_text(f"before\n{figures_of.CARD_BEGIN}\nold\n{figures_of.CARD_END}\nafter\n")
    figures_of.fill_card(card, figures_of.markdown(figures))
    text = card.read_text()
    assert "old" not in text and text.startswith("before") and text.endswith("after\n") and "| 256 px |" in text
    card.write_text("no markers")
    with pytest.raises(ValueError, match="figures"):
        figures_of.fill_card(card, "")
