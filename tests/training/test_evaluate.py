"""Figures of the embedded model: that they measure what they say, on an untrained tiny one."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from onrw_core.mini import Mini, MiniAutoencoder, MiniModel
from onrw_core.mini.autoencoder import PatchAutoencoder, principal_patches
from onrw_core.mini.text import TextEncoder, Tokenizer
from onrw_core.mini.unet import UNet, UNetConfig
from onrw_core.training import classifier, evaluate, figures, masks, timings
from onrw_core.training.card import BEGIN, END, fill_card, markdown
from onrw_core.training.data import read_captions, read_square


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
    unet = UNet(UNetConfig(channels=8, width=32, multiples=(1, 1, 1), attention=(False, True, True)))
    autoencoder = PatchAutoencoder(latent_channels=8, stem=8, encoder=8, decoder=8, head=8)
    images = torch.cat([read_square(folder / f"{k}.png", 64) for k in range(2)])
    autoencoder.initialise_linear(*principal_patches(images, 8))
    return Mini(MiniModel(unet), MiniAutoencoder(autoencoder), tokenizer, TextEncoder(len(tokenizer)))


@pytest.fixture
def coloured(tmp_path):
    """Photos of two captions that a colour tells apart."""
    folder = tmp_path / "coloured"
    folder.mkdir()
    rng = np.random.default_rng(1)
    lines = []
    for k in range(2 * classifier.LEAST_PHOTOS):
        picture = rng.integers(0, 90, (80, 100, 3), np.uint8)
        picture[..., 0 if k % 2 else 2] += 140
        Image.fromarray(picture).save(folder / f"{k}.png")
        lines.append(f"{k}.png\t{('something blue', 'something red')[k % 2]}")
    (folder / "captions.tsv").write_text("\n".join([*lines, "0.png\tsomething rare"]) + "\n")
    return folder


def test_figures_of_an_untrained_model(mini, folder, monkeypatch, tmp_path):
    monkeypatch.setattr(figures, "WORKING_SIZE", 64)
    monkeypatch.setattr(evaluate, "SIDES", (64, 128))
    monkeypatch.setattr(evaluate, "ROUND_TRIPS", (("ddim", 4), ("fixed-point", 4)))
    found = evaluate.evaluate(mini, folder, foreign=mini.autoencoder)
    assert found["photos"] == found["photos_unet"] == 2 and found["photos_round_trip"] == 1
    assert list(found["reconstructions"]) == ["64 px", "128 px", "foreign, 64 px", "foreign, 128 px"]
    assert found["reconstructions"]["64 px"]["psnr"] >= found["reconstructions"]["64 px"]["psnr_worst"] > 20
    assert 0.5 < found["reconstructions"]["128 px"]["ssim"] <= 1
    # v = 0 means eps_hat = sigma x / (1 + sigma^2): nothing known at small sigma, nearly everything at large.
    errors = list(found["noise_error"].values())
    assert errors[0] == pytest.approx(1.0, abs=0.05) and errors[-1] < 0.1
    # An untrained network ignores its prompt, so guidance changes nothing; fixed-point inversion is exact.
    plain, exact = found["round_trips"].values()
    assert plain["latent_1"] == pytest.approx(plain["latent_guided"], abs=1e-3)
    assert exact["latent_1"] > plain["latent_1"] + 10

    found["samples"] = {"top1": 0.4, "top5": 0.5, "samples": 8, "classes": 10, "guidance": 4.0, "steps": 20}
    found["samples"]["shown"] = ["a hat", "a leek"]
    found["classifier"] = {"top1": 0.6, "top5": 0.9, "held_out": 20}
    found["masks"] = {"ratios": {"a.jpg": 1.5, "b.jpg": 2.5}, "pooled": 1.9, "median": 2.0}
    found["masks"] |= {"other_boxes": 1.1, "other_word": 0.9}
    found |= {"threads": 1, "seconds": {"a call": {"wall": 0.1234, "cpu": 0.2}}}
    card = tmp_path / "card.md"
    card.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    fill_card(card, markdown(found))
    text = card.read_text()
    assert "old" not in text and text.startswith("before") and text.endswith("after\n")
    assert "for 40% and among its first five for 50%" in text and "a hat; a leek." in text
    assert "1.90 times" in text and "1.50 to 2.50; at least 2 on 1" in text
    assert "| 64 px |" in text and "| ddim, 4 steps |" in text and "| a call | 0.123 |" in text
    card.write_text("no markers")
    with pytest.raises(ValueError, match="figures"):
        fill_card(card, "")


def test_classifier_tells_captions_apart_and_is_kept(coloured, tmp_path, monkeypatch):
    monkeypatch.setattr(classifier, "WIDTHS", (8, 8, 16))
    monkeypatch.setattr(classifier, "EPOCHS", 12)
    monkeypatch.setattr(classifier, "BATCH", 12)
    entries = read_captions(coloured)
    cache = tmp_path / "cache" / "classifier.pt"
    model, judged = classifier.load_classifier(entries, cache)
    assert model.captions == ["something blue", "something red"]
    assert judged == {"top1": 1.0, "top5": 1.0, "held_out": 4}
    red = torch.tensor([0.8, 0.2, 0.2])[None, :, None, None].expand(1, 3, 128, 128)
    assert model.ranks(red.repeat(2, 1, 1, 1), ["something blue", "something red"]).tolist() == [1, 0]
    monkeypatch.setattr(classifier, "train_classifier", None)
    again, _ = classifier.load_classifier(entries, cache)
    assert torch.equal(again(red), model(red))


def test_classifier_needs_photos(folder):
    with pytest.raises(ValueError, match="no caption has 20 photos"):
        classifier.train_classifier(read_captions(folder))


def test_samples_are_judged_and_shown(mini, monkeypatch):
    monkeypatch.setattr(figures, "WORKING_SIZE", 64)
    torch.manual_seed(0)
    judge = classifier.CaptionClassifier([f"clouds {k}" for k in range(6)]).eval()
    found, pictures = figures.sample_figures(mini, judge, each=2, guidance=3.0, steps=2)
    assert found["samples"] == 12 and found["classes"] == 6
    assert 0 <= found["top1"] <= found["top5"] < 1  # noise always looks like the same few of six
    assert list(pictures) == judge.captions and pictures["clouds 0"].shape == (3, 64, 64)


def test_masks_inside_and_outside_of_boxes(mini, folder, tmp_path, monkeypatch):
    inside = masks.region([[0.0, 0.0, 0.5, 1.0], [0.25, 0.0, 0.75, 0.5]], 8)
    assert inside.sum() == 40 and inside[0, 5] and not inside[7, 5]
    mask = torch.tensor([[0.8, 0.2], [0.8, 0.2]])[None, None]
    assert masks.inside_outside(mask, masks.region([[0, 0, 0.5, 1]], 8)) == pytest.approx((0.8, 0.2))

    monkeypatch.setattr(masks, "SIDE", 64)
    monkeypatch.setattr(masks, "STEPS", 2)
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps({f"{k}.png": ["clouds", [[0, 0, 0.5, 0.5]]] for k in range(2)}))
    entries = read_captions(folder)
    mini.model.unet.middle_block[1].transformer_blocks[0].attn2.to_q.weight.data.mul_(20)
    found = masks.mask_figures(mini, entries, boxes)
    assert list(found["ratios"]) == ["0.png", "1.png"] and found["pooled"] > 0
    assert found["other_boxes"] == pytest.approx(found["pooled"])  # the boxes are the same on both
    with pytest.raises(ValueError, match=r"1\.png, marked in boxes\.json"):
        masks.mask_figures(mini, entries[:1], boxes)


def test_marked_photos_have_boxes_within_the_square():
    marked = json.loads(masks.BOXES.read_text())
    assert len(marked) == 20
    for word, boxes in marked.values():
        assert word and all(0 <= left < right <= 1 and 0 <= top < bottom <= 1 for left, top, right, bottom in boxes)
        assert 0.2 < masks.region(boxes, 100).float().mean() < 0.85


def test_timings_of_the_package_weights(mini, monkeypatch):
    monkeypatch.setattr(timings, "LATENT_SIDES", (8, 8))
    monkeypatch.setattr(timings, "REPEATS", 1)
    before = torch.get_num_threads()
    seconds = timings.timings(mini, threads=1)
    assert len(seconds) == 4 and all(0 < row["cpu"] < 20 and 0 < row["wall"] < 60 for row in seconds.values())
    assert torch.get_num_threads() == before
