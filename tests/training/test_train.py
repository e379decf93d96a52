"""Training of the embedded model on a handful of small pictures: resumption, determinism, exports, bad input."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from onrw_core.mini import load_mini
from onrw_core.mini.autoencoder import PatchAutoencoder
from onrw_core.mini.unet import UNetConfig
from onrw_core.mini.weights import AUTOENCODER_FILE, CHECKSUM_FILE, TEXT_FILE, UNET_FILE, export_module
from onrw_core.training import train_autoencoder, train_unet
from onrw_core.training.data import load_photos, read_captions
from onrw_core.training.loop import Budget
from onrw_core.training.pack import pack
from onrw_core.training.train import train

SMALL = {"latent_channels": 4, "stem": 8, "encoder": 8, "decoder": 8, "head": 8, "encoder_blocks": 1}
TINY_UNET = UNetConfig(channels=4, width=32, multiples=(1, 1), attention=(False, True))


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = []
    for k in range(41):
        name = f"{k}.png"
        where = folder / "more" if k % 2 else folder
        small = Image.fromarray(rng.integers(0, 255, (4, 5, 3), np.uint8))
        small.resize((170, 136), Image.Resampling.BICUBIC).save(where / name)
        lines.append(f"{name}\ta picture of number {k % 3}")
    (folder / "captions.tsv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(train_autoencoder, "PIXELS_PER_BATCH", 128 * 128)
    monkeypatch.setattr(train_unet, "PHOTO_SIDES", {16: 136, 32: 264})
    monkeypatch.setattr(train_unet, "BATCHES", {16: 2, 24: 1, 32: 1})
    monkeypatch.setattr(train_unet, "SHARES_LATE", {16: 1.0})
    monkeypatch.setattr(train_unet, "SHARES_EARLY", {24: 1.0})
    monkeypatch.setattr(train_unet, "sample_sheet", lambda *args: None)


def small_autoencoder(seed: int = 0) -> PatchAutoencoder:
    torch.manual_seed(seed)
    return PatchAutoencoder(**SMALL)


def test_photos_are_found_and_cropped(photos, tmp_path):
    entries = read_captions(photos)
    assert len(entries) == 41 and entries[1][0].parent.name == "more"
    whole = load_photos(photos, tmp_path / "cache")
    assert whole.photo(3).shape == (136, 170, 3)
    assert list(whole.indices(held_out=True)) == [39] and 39 not in whole.indices(held_out=False)
    a, b = (whole.crops(np.random.default_rng(5), 3, 64) for _ in range(2))
    assert a.shape == (3, 3, 64, 64) and torch.equal(a, b)
    assert whole.square(0, 48).shape == (3, 48, 48)


def test_autoencoder_resumes_to_the_same_weights(photos, tmp_path, quick):
    whole = load_photos(photos, tmp_path / "cache")
    folders = [tmp_path / "once", tmp_path / "twice"]
    for folder in folders:
        folder.mkdir()
    stop = tmp_path / "stop"
    once = train_autoencoder.train_autoencoder(
        small_autoencoder(), whole, folders[0], "a", seed=3, budget=Budget(4, None), device="cpu"
    )

    class Interrupted(Budget):
        def spent(self, step: int) -> bool:
            return step >= 2 or super().spent(step)

    train_autoencoder.train_autoencoder(
        small_autoencoder(), whole, folders[1], "a", seed=3, budget=Interrupted(4, None, stop), device="cpu"
    )
    twice = train_autoencoder.train_autoencoder(
        small_autoencoder(9), whole, folders[1], "a", seed=3, budget=Budget(4, None), device="cpu"
    )
    for name, value in once.state_dict().items():
        assert torch.allclose(value, twice.state_dict()[name], atol=1e-6), name
    line = json.loads((folders[0] / "a.jsonl").read_text().splitlines()[-1])
    assert line["step"] == 4 and line["psnr"] > 5
    assert (folders[0] / "a_reconstructions.png").is_file()


def test_unet_trains_resumes_and_exports(photos, tmp_path, quick):
    whole = load_photos(photos, tmp_path / "cache")
    out = tmp_path / "out"
    autoencoder = small_autoencoder().requires_grad_(False)
    export_module(autoencoder, out / AUTOENCODER_FILE, autoencoder.config)
    for steps in (2, 4):
        train_unet.train_unet(
            whole, autoencoder, "x", out, seed=0, budget=Budget(steps, None), device="cpu", config=TINY_UNET
        )
    lines = [json.loads(line) for line in (out / "unet.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4] and lines[-1]["v400"] > 0
    mini = load_mini(weights=out)
    prompt = mini.encode("a picture of number 2")
    (x0,), _ = mini.model.denoise(torch.randn(1, 4, 8, 8), torch.tensor(1.0), [prompt])
    assert x0.isfinite().all()
    with pytest.raises(ValueError, match="another autoencoder"):
        train_unet.train_unet(
            whole, autoencoder, "y", out, seed=0, budget=Budget(4, None), device="cpu", config=TINY_UNET
        )


def test_unet_goes_on_from_exported_weights(photos, tmp_path, quick):
    whole, autoencoder = load_photos(photos, tmp_path / "cache"), small_autoencoder()

    def run(out, steps, config=TINY_UNET):
        train_unet.train_unet(
            whole, autoencoder, "small", out, seed=0, budget=Budget(steps, None), device="cpu", config=config
        )
        return (out / UNET_FILE).read_bytes()

    first, second = tmp_path / "first", tmp_path / "second"
    run(first, 3)
    fresh = run(second, 1)
    (second / "unet.pt").unlink()
    for name in (UNET_FILE, TEXT_FILE, CHECKSUM_FILE):
        (second / name).write_bytes((first / name).read_bytes())
    assert run(second, 1) != fresh
    (second / "unet.pt").unlink()
    with pytest.raises(ValueError, match="another structure"):
        run(second, 1, UNetConfig(channels=4, width=32, multiples=(1, 2), attention=(False, True)))


def test_pack_keeps_captions_and_the_limit(photos, tmp_path):
    packed = tmp_path / "packed"
    written = pack(photos, packed, 0.1, side=64)
    entries = read_captions(packed)
    assert [caption for _, caption in entries] == [caption for _, caption in read_captions(photos)]
    assert written == sum(path.stat().st_size for path, _ in entries) <= 0.1 * 2**20
    with Image.open(entries[0][0]) as image:
        assert min(image.size) == 64
    with pytest.raises(ValueError, match="exists"):
        pack(photos, packed, 1)
    with pytest.raises(ValueError, match="allow more"):
        pack(photos, tmp_path / "none", 0.0001)
    assert not (tmp_path / "none").exists()


def test_timesteps_prefer_the_middle_and_forget_none():
    drawn = train_unet.drawn_timesteps(4000, torch.Generator().manual_seed(0))
    middle = ((drawn > 250) & (drawn < 750)).float().mean()
    assert 0.6 < middle < 0.75
    assert drawn.min() < 10 and drawn.max() > 990 and drawn.max() < 1000


def test_stop_file_ends_training(tmp_path):
    budget = Budget(100, None, tmp_path / "STOP")
    assert not budget.spent(5) and budget.progress(50) == 0.5
    (tmp_path / "STOP").touch()
    assert budget.spent(5)


def test_bad_input_is_named(photos, tmp_path):
    with pytest.raises(ValueError, match="stage"):
        train(photos, tmp_path, stage="both", steps=1)
    with pytest.raises(ValueError, match="steps or minutes"):
        Budget(None, None)
    with pytest.raises(FileNotFoundError, match="captions.tsv"):
        read_captions(tmp_path)
    (photos / "captions.tsv").write_text("0.png a caption without a tab\n")
    with pytest.raises(ValueError, match="line 1"):
        read_captions(photos)
    (photos / "captions.tsv").write_text("none.png\ta caption\n")
    with pytest.raises(FileNotFoundError, match="none.png"):
        read_captions(photos)
    (photos / "captions.tsv").write_text("\n")
    with pytest.raises(ValueError, match="empty"):
        read_captions(photos)
