"""Weight files of the embedded model: format, checksums, errors, and the shipped weights."""

from __future__ import annotations

import pytest
import torch

from onrw_core.mini import load_mini
from onrw_core.mini.autoencoder import PatchAutoencoder
from onrw_core.mini.text import LENGTH, WIDTH, TextEncoder, Tokenizer
from onrw_core.mini.unet import UNet, UNetConfig
from onrw_core.mini.weights import AUTOENCODER_FILE, CHECKSUM_FILE, TEXT_FILE, UNET_FILE, export_module


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_captions(["a red hat"])
    autoencoder = PatchAutoencoder(latent_channels=4, stem=8, encoder=8, decoder=8, head=8)
    unet = UNet(UNetConfig(channels=4, width=32, multiples=(1, 1), attention=(False, True)))
    export_module(autoencoder, tmp_path / AUTOENCODER_FILE, autoencoder.config)
    export_module(unet, tmp_path / UNET_FILE, unet.config.to_dict())
    export_module(TextEncoder(len(tokenizer)), tmp_path / TEXT_FILE, {"vocabulary": tokenizer.vocabulary})
    return tmp_path


def test_round_trip_is_frozen_and_usable(folder):
    mini = load_mini(weights=folder)
    assert not any(p.requires_grad for m in (mini.model.unet, mini.text) for p in m.parameters())
    prompt = mini.encode("a red hat", "hat")
    assert prompt.embeddings.shape == (1, LENGTH, WIDTH) and prompt.word[:2] == (3, 6)
    latent = mini.autoencoder.encode(torch.rand(1, 3, 32, 32))
    (x0,), _ = mini.model.denoise(latent, torch.tensor(1.0), [prompt])
    assert x0.shape == latent.shape and x0.dtype == torch.float32
    assert load_mini(weights=folder).model.name == mini.model.name


def test_half_precision_keeps_float_latents(folder):
    mini = load_mini(weights=folder, dtype=torch.bfloat16)
    latent = mini.autoencoder.encode(torch.rand(1, 3, 32, 32))
    (x0,), _ = mini.model.denoise(latent, torch.tensor(1.0), [mini.encode("a hat")])
    assert latent.dtype == x0.dtype == mini.autoencoder.decode(x0).dtype == torch.float32


def test_damage_is_noticed(folder):
    path = folder / UNET_FILE
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="SHA-256"):
        load_mini(weights=folder)


def test_missing_and_unlisted_files_are_named(folder):
    (folder / CHECKSUM_FILE).write_text("")
    with pytest.raises(ValueError, match="not listed"):
        load_mini(weights=folder)
    (folder / TEXT_FILE).unlink()
    with pytest.raises(FileNotFoundError, match=TEXT_FILE):
        load_mini(weights=folder)
