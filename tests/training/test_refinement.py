"""The stages after training, on small pictures: the decoder for structure, the cross-attention for its object."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from onrw_core.diffusion.model import AttentionMaps
from onrw_core.mini.autoencoder import PatchAutoencoder
from onrw_core.mini.text import TextEncoder, Tokenizer
from onrw_core.mini.unet import UNet, UNetConfig
from onrw_core.mini.weights import AUTOENCODER_FILE, export_module, load_autoencoder, load_unet
from onrw_core.training import segmentation, train_autoencoder, train_decoder, train_grounding
from onrw_core.training.data import load_photos
from onrw_core.training.loop import Budget
from onrw_core.training.train import train

SMALL = {"latent_channels": 4, "stem": 8, "encoder": 8, "decoder": 8, "head": 8, "encoder_blocks": 1}
TINY_UNET = UNetConfig(channels=4, width=32, multiples=(1, 1), attention=(False, True))
WORDS = ("ball", "box", "cup", "fork", "knife", "lamp", "plate", "spoon")


@pytest.fixture
def photos(tmp_path):
    """Bright things left or right on dark grounds."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    lines = []
    for k in range(48):
        picture = rng.integers(20, 40, (96, 96, 3), np.uint8)
        left = 12 if k % 2 else 48
        picture[24:72, left : left + 36] = rng.integers(120, 250, 3) + rng.integers(-5, 5, (48, 36, 3))
        Image.fromarray(picture).save(folder / f"{k}.png")
        lines.append(f"{k}.png\ta photo of a {WORDS[k % len(WORDS)]}")
    (folder / "captions.tsv").write_text("\n".join(lines) + "\n")
    return folder


def test_objects_on_plain_grounds_are_cut_out():
    rng = np.random.default_rng(1)
    picture = rng.integers(180, 200, (64, 64, 3), np.uint8)
    picture[16:48, 10:40] = (200, 30, 40)
    picture[30, 20] = 190  # a hole
    picture[5, 60] = 0  # a speck
    mask = segmentation.object_mask(picture)
    truth = np.zeros((64, 64), bool)
    truth[16:48, 10:40] = True
    assert (mask & truth).sum() / (mask | truth).sum() > 0.97 and mask[30, 20] and not mask[5, 60]
    assert segmentation.object_mask(rng.integers(0, 255, (64, 64, 3), np.uint8)) is None  # no plain ground
    assert segmentation.object_mask(np.full((64, 64, 3), 90, np.uint8)) is None  # nothing on it
    ring = np.full((64, 64, 3), 200, np.uint8)
    ring[8:56, 8:56] = 20
    ring[16:48, 16:48] = 200
    assert segmentation.object_mask(ring)[32, 32]  # what is enclosed belongs to it


def test_words_that_few_captions_share_name_the_object():
    captions = [f"a photo of a {word}" for word in WORDS] + ["a photo of a cup and a plate", "a box a cup a lamp"]
    words = train_grounding.object_words(captions * 2)[: len(captions)]
    assert words[0] == ("ball",) and words[7] == ("spoon",)
    assert words[-1] == ()  # three things: no mask can say which is where


def test_attention_outside_is_zero_inside_of_the_mask():
    inside = torch.zeros(1, 1, 4, 4)
    inside[..., :2] = 1
    tokens = torch.tensor([[0.0, 1.0, 0.0]])
    heat = torch.zeros(1, 2, 4, 4, 3)
    heat[..., :2, 1] = 0.3  # both heads look at the object's token from the object,
    heat[..., 2:, 2] = 0.9  # at another from elsewhere
    maps = AttentionMaps(cross_attention={"a": heat.flatten(2, 3)}, sizes={"a": (4, 4)})
    assert train_grounding.attention_outside(maps, tokens, inside) == pytest.approx(0, abs=1e-6)
    assert train_grounding.attention_outside(maps, tokens, 1 - inside) == pytest.approx(1)
    heat[:, 0, :, :, 1] = 0.3  # one head looks from everywhere: half of it is outside
    assert train_grounding.attention_outside(maps, tokens, inside) == pytest.approx(0.125)


def test_decoder_gains_structure_and_keeps_the_latent(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(train_decoder, "SIDE", 64)
    monkeypatch.setattr(train_decoder, "FEWEST", 64)
    monkeypatch.setattr(train_decoder, "WORKING_SIZE", 80)
    monkeypatch.setattr(train_decoder, "LEARNING_RATE", 5e-3)
    out = tmp_path / "out"
    whole = load_photos(photos, out / "cache")
    torch.manual_seed(0)
    before = PatchAutoencoder(**SMALL)
    images = train_autoencoder.held_out_squares(whole, 80, 1)
    before.initialise_linear(*train_autoencoder.principal_patches(images, 4))
    before.linear_decoder.weight.data.mul_(0.6)  # dull
    export_module(before, out / AUTOENCODER_FILE, before.config)
    before = load_autoencoder(out)
    train(photos, out, stage="decoder", steps=20)
    after = load_autoencoder(out)
    assert torch.equal(after.encode(images), before.encode(images))
    lines = [json.loads(line) for line in (out / "decoder.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 20] and lines[1]["ssim"] > lines[0]["ssim"] + 0.01
    assert lines[1]["ssim"] == pytest.approx(train_decoder.similarity(after, images), abs=2e-3)

    # A run that was interrupted equals one that was not.
    once, twice = ((tmp_path / name) for name in ("once", "twice"))
    refined = []
    for folder, stops in ((once, (4,)), (twice, (2, 4))):
        folder.mkdir()
        for stop in stops:
            model = load_autoencoder(out)
            budget = Budget(4, None)
            budget.spent = lambda step, stop=stop: step >= stop
            train_decoder.train_decoder(model, whole, folder, seed=1, budget=budget, device="cpu")
        refined.append(model.state_dict())
    assert all(torch.allclose(value, refined[1][name], atol=1e-6) for name, value in refined[0].items())


def test_grounding_moves_attention_and_nothing_else(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(train_grounding, "SIDE", 16)
    monkeypatch.setattr(train_grounding, "LEARNING_RATE", 5e-3)
    out = tmp_path / "out"
    whole = load_photos(photos, out / "cache")
    torch.manual_seed(0)
    autoencoder = PatchAutoencoder(**SMALL)
    sample = torch.stack([whole.square(k, 96) for k in range(8)])
    autoencoder.initialise_linear(*train_autoencoder.principal_patches(sample, 4))
    autoencoder.requires_grad_(False)
    tokenizer = Tokenizer.from_captions(whole.captions)
    unet, text = UNet(TINY_UNET), TextEncoder(len(tokenizer)).requires_grad_(False)
    before = {name: value.clone() for name, value in unet.state_dict().items()}

    def ground(steps: int, net: UNet) -> list[dict[str, float]]:
        budget = Budget(steps, None)
        train_grounding.train_grounding(
            net, text, tokenizer, whole, autoencoder, out, seed=0, budget=budget, device="cpu"
        )
        return [json.loads(line) for line in (out / "grounding.jsonl").read_text().splitlines()]

    lines = ground(25, unet)
    assert lines[-1]["checked_outside"] < 0.8 * lines[0]["checked_outside"] and lines[0]["checked_teacher"] == 0
    changed = {name for name, value in unet.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(".attn2." in name for name in changed)
    assert [line["step"] for line in ground(27, load_unet(out))][-1] == 27
    with pytest.raises(ValueError, match="another UNet"):
        ground(29, UNet(TINY_UNET))
    whole.captions[:] = ["a photo"] * len(whole)
    (out / "grounding.pt").unlink()
    with pytest.raises(ValueError, match="plain ground"):
        ground(1, UNet(TINY_UNET))
