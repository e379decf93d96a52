"""The command `onrw`: every verb, exit codes, bad input, and that nothing is lost."""

import json
import logging
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from onrw_core import models, pipeline
from onrw_core.attacks import MIXES
from onrw_core.commands import cli, common, embed, output
from onrw_core.commands.folders import KEEP
from onrw_core.commands.marker import _fit, load_mask
from onrw_core.imaging import files as images
from onrw_core.imaging.source_type import read_source_type
from onrw_core.imaging.ssimulacra2 import ssimulacra2
from onrw_core.mini.weights import UNET_FILE, WEIGHTS
from onrw_core.payload.keys import Key
from onrw_core.payload.message import encode_id
from onrw_core.stages.inversion import InversionState
from onrw_core.stages.limits import limits
from onrw_core.stages.noise_optimisation import PRESETS
from onrw_core.stages.quality import Judge

from .. import dummies

ROOT = Path(__file__).parents[2]
SIDE = 128
EMBED = pipeline.embed
EMBED_FIELDS = ["input", "output", "bits", "ssimulacra2", "ssimulacra2_decoded", "worst", "psnr", "ssim", "iterations"]
EMBED_FIELDS += ["seconds", "detected", "readable", "bits_after_attacks", "log10_p"]
EXTRACT_FIELDS = ["input", "detected", "log10_p", "bits", "text", "id", "geometry", "seconds"]


def photo(path, side=SIDE, **options):
    """A picture with some texture."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(60, 200, (side // 8, side // 8, 3), dtype=np.uint8))
    coarse.resize((side, side), Image.Resampling.BICUBIC).save(path, **options)
    return str(path)


def pixel_embed(image, model, autoencoder, extractor, bits, *, settings, mask, on_inversion, on_state, **_):
    """Stands in for the diffusion model: the same extractor, optimised in pixels, to no target quality."""
    on_inversion(InversionState("done", 4, 4))
    delta = torch.zeros_like(image, requires_grad=True)
    optimiser = torch.optim.Adam([delta], 0.01)
    for iteration in range(1, 17):
        marked = (image + delta * (1 if mask is None else mask[0])).clamp(0, 1)
        loss = extractor.loss(marked[None], bits).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        on_state(SimpleNamespace(iteration=iteration, total=16, bit_accuracy=1.0, psnr=40.0))
    extractor.public = settings.label
    return dummies.marked(marked.detach(), bits, extractor)


@pytest.fixture
def onrw(tmp_path, monkeypatch, capsys):
    """Run a command line in an empty folder with a key: -> (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ONRW_KEY", raising=False)
    monkeypatch.setattr(pipeline, "embed", pixel_embed)
    monkeypatch.setattr(embed, "load_model", lambda *_: models.Loaded(None, None, lambda prompt: None))
    Key(bytes(range(32))).save(tmp_path / "my.key")

    def run(*words):
        try:
            code = cli.main([str(word) for word in words])
        except SystemExit as stop:  # argparse
            code = stop.code
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def marked(onrw, tmp_path):
    photo("photo.png")
    code, _, err = onrw("embed", "photo.png", "-o", "marked.png", "--key", "my.key", "--id", "c0ffee")
    assert code == 0, err
    return "marked.png"


# ---- the verbs


def test_embed_and_extract_say_the_same(onrw):
    photo("photo.png")
    code, out, err = onrw("embed", "photo.png", "-o", "marked.png", "--key", "my.key", "--id", "c0ffee", "--json")
    assert code == 0 and err == ""
    embedded = json.loads(out)
    assert list(embedded) == EMBED_FIELDS
    assert embedded["detected"] is True and embedded["log10_p"] < -6 and len(embedded["bits"]) == 48
    code, out, _ = onrw("extract", "marked.png", "photo.png", "--key", "my.key", "--json")
    assert code == 0
    read, unmarked = map(json.loads, out.splitlines())
    assert list(read) == EXTRACT_FIELDS and list(read["geometry"]) == [
        "rotation",
        "scale",
        "shift",
        "flipped",
        "negative",
    ]
    assert read["detected"] and read["bits"] == embedded["bits"]
    assert read["id"] == "c0ffee" and read["text"] is None
    assert unmarked["detected"] is False and unmarked["id"] is None and unmarked["text"] is None
    assert len(unmarked["bits"]) == 48


def test_text_and_raw_bits(onrw):
    photo("photo.png")
    bits = "01" * 24
    assert onrw("embed", "photo.png", "-o", "raw.png", "--key", "my.key", "--bits", bits)[0] == 0
    read = json.loads(onrw("extract", "raw.png", "--key", "my.key", "--json")[1])
    assert read["bits"] == bits and read["id"] is None and read["text"] is None
    photo("large.png", 256)
    code, out, _ = onrw("embed", "large.png", "-o", "text.png", "--key", "my.key", "--text", "Ann 5", "--json")
    assert code == 0 and len(json.loads(out)["bits"]) == 64
    assert "text Ann 5" in onrw("extract", "text.png", "--key", "my.key")[1]


def test_text_output_counts_files_and_shows_bits_on_request(onrw, marked):
    bits = "".join(map(str, encode_id("c0ffee", Key.load("my.key")).bits.tolist()))
    read = ["extract", marked, "photo.png", "--key", "my.key", "--plain"]
    first, second = onrw(*read)[1].splitlines()
    assert first.startswith("1 of 2: marked.png: marked") and second.startswith("2 of 2: photo.png: nothing")
    assert bits not in first and bits in onrw(*read, "--verbose")[1]
    mark = ["embed", marked, "photo.png", "none.png", "-o", "out", "--key", "my.key", "--id", "c0ffee"]
    out = onrw(*mark)[1]
    assert [line[:8] for line in out.splitlines()] == ["1 of 3: ", "2 of 3: "] and bits not in out
    assert bits in onrw("embed", marked, "-o", "again.png", "--key", "my.key", "--id", "c0ffee", "--verbose")[1]
    assert onrw("extract", "photo.png", "--key", "my.key", "--plain")[1].startswith("photo.png: ")


def test_the_label_is_stated_in_the_metadata_on_request(onrw):
    photo("photo.png")
    words = ["embed", "photo.png", "--key", "my.key", "--id", "1", "--label", "digitalCapture"]
    assert onrw(*words, "-o", "without.png")[0] == 0 and onrw(*words, "-o", "with.png", "--write-label")[0] == 0
    stated = [read_source_type(images.load(f"{name}.png").info.get("xmp", b"")) for name in ("without", "with")]
    assert stated == [None, "digitalCapture"]
    code, _, err = onrw("embed", "photo.png", "-o", "no.png", "--key", "my.key", "--write-label")
    assert code == 2 and "--label" in err


@pytest.mark.parametrize("carried", ["trainedAlgorithmicMedia", "none"])
def test_the_metadata_state_the_label_that_the_image_has(onrw, monkeypatch, caplog, carried):
    """Which is that of an earlier watermark where there was one."""
    photo("photo.png")

    def marked_before(*inputs, **options):
        marked = pixel_embed(*inputs, **options)
        marked.extractor.public = carried
        return marked

    monkeypatch.setattr(pipeline, "embed", marked_before)
    words = ["--key", "my.key", "--id", "1", "--label", "digitalCapture", "--write-label"]
    assert onrw("embed", "photo.png", "-o", "a.png", *words)[0] == 0
    stated = read_source_type(images.load("a.png").info.get("xmp", b""))
    assert stated == (None if carried == "none" else carried)
    assert ("none is stated in the metadata" in caplog.text) == (carried == "none")


def test_expectations(onrw, marked):
    bits = "".join(map(str, encode_id("c0ffee", Key.load("my.key")).bits.tolist()))
    for option in (("--expect-id", "C0FFEE"), ("--expect-bits", bits)):
        match = json.loads(onrw("extract", marked, "--key", "my.key", "--json", *option)[1])["match"]
        assert match == {"bit_accuracy": 1.0, "log10_p": -14.45}
    wrong = json.loads(onrw("extract", marked, "--key", "my.key", "--json", "--expect-id", "123456")[1])["match"]
    assert wrong["bit_accuracy"] < 0.8 and wrong["log10_p"] > -5
    assert "100.0% of the bits agree" in onrw("extract", marked, "--key", "my.key", "--expect-id", "c0ffee")[1]


def test_wrong_key_reads_nothing(onrw, marked):
    assert onrw("key", "new", "-o", "other.key")[0] == 0
    assert "nothing found (p = " in onrw("extract", marked, "--key", "other.key")[1]


def test_key_from_the_environment(onrw, marked, monkeypatch):
    monkeypatch.setenv("ONRW_KEY", Key.load("my.key").text())
    code, out, err = onrw("extract", marked)
    assert code == 0 and "id c0ffee" in out
    assert Key.load("my.key").secret.hex() not in out + err


def test_every_photo_gets_an_id_of_its_own(onrw, tmp_path):
    (tmp_path / "in").mkdir()
    photo("in/a.png")
    photo("in/b.jpg")
    code, out, _ = onrw("embed", "in", "-o", "out", "--key", "my.key", "--json")
    first, second = map(json.loads, out.splitlines())
    assert code == 0 and first["bits"] != second["bits"]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.[pj]*g")) == ["a.png", "b.jpg"]


def test_a_mask_is_white_where_it_is_opaque_and_keeps_thin_lines(onrw):
    photo("photo.png")
    layer = Image.new("RGBA", (128, 128), (255, 255, 255, 0))
    layer.paste((255, 255, 255, 255), (32, 32, 96, 96))
    layer.save("layer.png")
    mask = load_mask("layer.png").values
    assert mask.sum() == 64 * 64 and mask[..., 32:96, 32:96].min() == 1
    layer.putalpha(0)
    layer.save("nothing.png")
    with pytest.raises(ValueError, match="transparent"):
        load_mask("nothing.png")
    for column in range(640, 645):
        thin = Image.new("L", (1280, 1280))
        thin.paste(255, (column, 0, column + 1, 1280))
        thin.save("thin.png")
        fitted = _fit(load_mask("thin.png"), torch.zeros(3, 128, 128), Path("photo.png"))
        assert fitted.sum() == pytest.approx(12.8, rel=0.1)  # a tenth of a column of 128 pixels


def test_mask_confines_the_mark(onrw):
    photo("photo.png")
    half = np.zeros((SIDE // 2, SIDE // 2), np.uint8)
    half[:, SIDE // 4 :] = 255
    Image.fromarray(half).save("mask.png")
    assert onrw("embed", "photo.png", "-o", "m.png", "--key", "my.key", "--mask", "mask.png")[0] == 0
    change = np.abs(np.asarray(Image.open("m.png"), int) - np.asarray(Image.open("photo.png"), int)).sum(2)
    assert change[:, : SIDE // 2 - 2].max() == 0 and change[:, SIDE // 2 + 2 :].max() > 0


def test_attack(onrw):
    photo("photo.png")
    code, out, _ = onrw("attack", "photo.png", "-o", "cut.png", "--attack", "crop=0.25", "--attack", "jpeg=50")
    assert code == 0 and "crop=0.25+jpeg=50" in out
    assert Image.open("cut.png").size == (SIDE // 2, SIDE // 2)
    code, out, _ = onrw("attack", "--list")
    assert code == 0 and "jpeg=50" in out


@pytest.mark.skipif(not (WEIGHTS / UNET_FILE).exists(), reason="the embedded model's weights are not there")
def test_embed_with_the_embedded_model(onrw, monkeypatch):
    monkeypatch.setattr(pipeline, "embed", EMBED)
    monkeypatch.setattr(embed, "load_model", models.load_model)
    photo("photo.png")
    words = ["--iterations", "3", "--size", SIDE, "--id", "beef", "--prompt", "a wall", "--json"]
    code, out, err = onrw("embed", "photo.png", "-o", "marked.png", "--key", "my.key", *words)
    fields = json.loads(out)
    assert code == 0 and list(fields) == EMBED_FIELDS and fields["iterations"] <= 3
    found = Judge(images.load("photo.png").rgb[None])(images.load("marked.png").rgb[None])
    assert fields["ssimulacra2"] == pytest.approx(found.quality, abs=0.01) and found.quality >= 90
    bounds = limits(90)
    assert 0.97 < max((100 - found.quality) / 10, found.worst / bounds.worst, found.norm / bounds.norm) <= 1


def test_an_image_with_little_room_is_named_before_and_after_the_work(onrw, monkeypatch, caplog):
    image = Image.new("L", (SIDE, SIDE), 255)
    ImageDraw.Draw(image).line([(5, 5), (120, 90), (20, 110)], fill=0, width=2)
    image.save("lines.png")
    monkeypatch.setattr(pipeline, "embed", EMBED)
    monkeypatch.setattr(embed, "load_model", models.load_model)
    words = ["--preset", "quick", "--iterations", "6", "--size", SIDE, "--id", "beef", "--json"]
    code, out, _ = onrw("embed", "lines.png", "-o", "marked.png", "--key", "my.key", *words)
    before, after = (record.getMessage() for record in caplog.records)
    assert "lines.png: little room for a watermark; in a trial" in before and "% of the bits" in before
    fields = json.loads(out)
    assert "marked.png" in after and code == (0 if fields["readable"] else 3)
    assert ("weak" if fields["readable"] else "cannot be read") in after
    assert 0.3 < fields["bits_after_attacks"] < 0.95


def test_jpeg_output_is_read_back_from_the_file(onrw):
    photo("photo.png")
    code, _, _ = onrw("embed", "photo.png", "-o", "marked.jpg", "--key", "my.key", "--id", "1")
    assert code == 0 and Image.open("marked.jpg").format == "JPEG"
    assert "id 000001" in onrw("extract", "marked.jpg", "--key", "my.key")[1]


@pytest.mark.parametrize("output", ["marked.jpg", "marked.webp", "marked.png"])
def test_the_quality_of_a_lossy_file_is_reported(onrw, output):
    photo("photo.png")
    words = ["embed", "photo.png", "-o", output, "--key", "my.key", "--id", "1", "--overwrite"]
    fields = json.loads(onrw(*words, "--json")[1])
    text = onrw(*words)[1]
    if output == "marked.png":
        assert fields["ssimulacra2_decoded"] is None and "compression" not in text
        return
    original, decoded = (images.load(path).rgb[None] for path in ("photo.png", output))
    quality = ssimulacra2(decoded, original).item()
    assert fields["ssimulacra2_decoded"] == pytest.approx(quality, abs=0.006) and quality < fields["ssimulacra2"]
    assert f"({quality:.1f} with the compression of the file)" in text


def test_registry(onrw, tmp_path):
    photo("photo.png")
    words = ["embed", "photo.png", "-o", "m.png", "--key", "my.key"]
    assert onrw(*words, "--id", "ab", "--registry", "ids.db", "--note", "for Ann")[0] == 0
    assert "0000ab" in onrw("lookup", "AB", "--registry", "ids.db")[1]
    entry = json.loads(onrw("lookup", "--registry", "ids.db", "--json")[1])
    assert entry["id"] == "0000ab" and entry["note"] == "for Ann" and len(entry["file_hash"]) == 64
    assert "for Ann" in onrw("extract", "m.png", "--key", "my.key", "--registry", "ids.db")[1]
    assert "nothing under 12" in onrw("lookup", "12", "--registry", "ids.db")[1]
    for bad, reason in (
        (["lookup", "xy", "--registry", "ids.db"], "not hexadecimal"),
        (["lookup", "ab", "--registry", "none.db"], "no such file"),
        (["lookup", "ab", "--registry", "photo.png"], "damaged"),
        ([*words, "--overwrite", "--registry", "ids.db", "--bits", "01" * 24], "takes ids"),
        ([*words, "--overwrite", "--note", "lost"], "--registry"),
    ):
        code, _, err = onrw(*bad)
        assert code == 2 and reason in err, err
    assert not (tmp_path / "none.db").exists()


# ---- bad input


def test_bad_pictures_are_named(onrw, tmp_path):
    good = photo("good.png")
    (tmp_path / "empty.png").touch()
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:3000])
    (tmp_path / "words.png").write_text("no picture at all")
    photo("small.png", 48)
    Image.fromarray(np.zeros((80, 80), np.uint16)).save("deep.png")
    frames = [Image.new("RGB", (80, 80), colour) for colour in ("red", "blue")]
    frames[0].save("moving.gif", save_all=True, append_images=frames[1:])
    for name in ("missing.png", "empty.png", "cut.png", "words.png", "small.png", "deep.png", "moving.gif"):
        for command in (["embed", name, "-o", "out.png"], ["extract", name]):
            code, out, err = onrw(*command, "--key", "my.key")
            assert code == 2 and name in err and "Traceback" not in err and out == "", (name, err)
            assert not (tmp_path / "out.png").exists()
    assert (tmp_path / "good.png").exists() and good


def test_other_kinds_of_picture_are_taken(onrw, tmp_path):
    picture = Image.open(photo("rgb.png"))
    for mode, name in (("L", "grey.png"), ("P", "palette.png"), ("RGBA", "alpha.png"), ("CMYK", "cmyk.jpg")):
        picture.convert(mode).save(name)
        code, _, err = onrw("embed", name, "-o", f"marked-{name}", "--key", "my.key", "--id", "7")
        assert code == 0, (name, err)
        assert "id 000007" in onrw("extract", f"marked-{name}", "--key", "my.key")[1]


def test_alpha_that_the_output_cannot_hold(onrw, tmp_path):
    picture = Image.open(photo("rgb.png")).convert("RGBA")
    picture.save("opaque.png")
    picture.putalpha(128)
    picture.save("alpha.png")
    code, _, err = onrw("embed", "alpha.png", "-o", "marked.jpg", "--key", "my.key")
    assert code == 2 and "alpha.png" in err and "transparency" in err and not (tmp_path / "marked.jpg").exists()
    assert onrw("embed", "opaque.png", "-o", "marked.jpg", "--key", "my.key")[0] == 0


def test_progress_has_two_stages(monkeypatch):
    with common.Progress("photo.png") as progress:
        shown = []
        progress.bar = SimpleNamespace(n=0, total=None, close=lambda: None, set_postfix=lambda **_: None)
        progress.bar.reset = lambda: setattr(progress.bar, "n", 0)
        progress.bar.set_description = lambda label, refresh: shown.append(label)
        progress.bar.update = lambda count: setattr(progress.bar, "n", progress.bar.n + count)
        progress.inversion(InversionState("done", 4, 4))
        assert (progress.bar.n, progress.bar.total) == (4, 4)
        progress.optimisation(SimpleNamespace(iteration=1, total=16, bit_accuracy=1.0, psnr=40.0))
        assert (progress.bar.n, progress.bar.total) == (1, 16)
    assert shown == ["photo.png: inversion", "photo.png"]


def test_json_stays_json(capsys):
    output.json_line(psnr=float("inf"), bits="01", seconds=0.5)
    assert json.loads(capsys.readouterr().out) == {"psnr": None, "bits": "01", "seconds": 0.5}


def test_batch_with_a_bad_file(onrw, tmp_path):
    photo("a.png")
    photo("c.png")
    (tmp_path / "b.png").write_text("no picture")
    code, out, err = onrw("embed", "a.png", "b.png", "c.png", "-o", "out/", "--key", "my.key", "--json")
    assert code == 1 and "b.png" in err and err.count("error") == 1
    assert [json.loads(line)["input"] for line in out.splitlines()] == ["a.png", "c.png"]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["a.png", "c.png"]
    code, out, err = onrw("extract", "out/a.png", "b.png", "--key", "my.key", "--json")
    assert code == 1 and len(out.splitlines()) == 1 and "b.png" in err


def test_batch_goes_on_after_anything(onrw, tmp_path, monkeypatch):
    def exhausted(image, *rest, **options):
        if image.shape[-1] == 64:
            raise MemoryError
        return pixel_embed(image, *rest, **options)

    monkeypatch.setattr(pipeline, "embed", exhausted)
    photo("a.png", 64)
    photo("b.png")
    code, out, err = onrw("embed", "a.png", "b.png", "-o", "out/", "--key", "my.key", "--json")
    assert code == 1 and "a.png: MemoryError" in err and json.loads(out)["input"] == "b.png"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--text", "a text that is much too long"], "10 ASCII characters or 9 bytes"),
        (["--text", ""], "printable"),
        (["--id", "hello"], "not hexadecimal"),
        (["--bits", "0120"], "0 and 1"),
        (["--bits", "0101"], "32, 48, 64, 96, 128"),
        (["--id", "1", "--text", "a"], "not allowed with"),
        (["--target-psnr", "200"], "20 to 60"),
        (["--quality", "100"], "30 to 98"),
        (["--quality", "90", "--target-psnr", "42"], "not allowed with"),
        (["--spare", "--target-psnr", "42"], "raises the quality"),
        (["--iterations", "0"], "1 to"),
        (["--size", "tiny"], "not a number"),
        (["--preset", "best"], "fast"),
        (["--mask", "none.png"], "none.png"),
        (["--mask", "black.png"], "all black"),
        (["--mask", "wide.png"], "same aspect ratio"),
    ],
)
def test_bad_embed_arguments(onrw, tmp_path, words, reason):
    photo("photo.png")
    Image.new("L", (128, 128)).save("black.png")
    Image.new("L", (256, 128), 255).save("wide.png")
    code, _, err = onrw("embed", "photo.png", "-o", "out.png", "--key", "my.key", *words)
    assert code == 2 and reason in err and "Traceback" not in err
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize("given", ["digits", "text"])
def test_no_output_has_a_part_of_a_key(onrw, marked, capsys, given):
    """Of a key that was given in place of something else."""
    digits = Key.load("my.key").text()[11:]
    key = digits if given == "digits" else f"onrw-key-1:{digits}"
    embed = ["embed", "photo.png", "-o", "m.png", "--key", "my.key"]
    assert onrw(*embed, "--id", "1", "--registry", "ids.db", "--note", f"for {key}")[0] == 0
    for words in (
        [*embed, "--id", key, "--overwrite"],
        [*embed, "--text", key, "--overwrite"],
        [*embed, "--bits", key, "--overwrite"],
        ["extract", marked, "--key", "my.key", "--expect-id", key],
        ["lookup", key, "--registry", "ids.db"],
        ["lookup", "--registry", "ids.db"],
        ["lookup", "--registry", "ids.db", "--json"],
        ["verify", "m.png", "--key", "my.key", "--registry", "ids.db", "--html", "page.html", "--overwrite"],
        ["detect", key],
    ):
        code, out, err = onrw(*words)
        assert "(hidden)" in out + err and digits[:20] not in out + err, words
        if "--json" in words:
            assert json.loads(out)["note"] == "for onrw-key-1:(hidden)"
    assert digits[:20] not in Path("page.html").read_text()
    try:
        raise ValueError(key)
    except ValueError:
        record = logging.LogRecord("a", logging.ERROR, "a", 1, "unexpected: %s", (key,), sys.exc_info())
    assert digits[:20] not in output.LineFormatter().format(record)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--fpr", "0"], "between 0 and 1"),
        (["--expect-bits", "01"], "32, 48, 64, 96, 128"),
        (["--expect-id", "f" * 30], "hold 18"),
    ],
)
def test_bad_extract_arguments(onrw, words, reason):
    photo("photo.png")
    code, _, err = onrw("extract", "photo.png", "--key", "my.key", *words)
    assert code == 2 and reason in err


def test_bad_keys(onrw, tmp_path):
    photo("photo.png")
    (tmp_path / "bad.key").write_text("secret words")
    for words, reason in (
        ([], "onrw key new"),
        (["--key", "none.key"], "none.key"),
        (["--key", "bad.key"], "not an ONRW key"),
    ):
        code, _, err = onrw("extract", "photo.png", *words)
        assert code == 2 and reason in err and "secret words" not in err
    code, _, err = onrw("key", "new", "-o", "my.key")
    assert code == 2 and "never overwritten" in err


def test_outputs_are_never_lost(onrw, marked, tmp_path):
    before = (tmp_path / marked).read_bytes()
    for words, reason in (
        (["photo.png", "-o", marked], "exists"),
        ([marked, "-o", marked], "input itself"),
        (["photo.png", "-o", "none/out.png"], "cannot be written"),
        (["photo.png", "-o", "my.key/out.png"], "cannot be written"),
        # Writable by its permissions, for root, and takes no file: refused before the work all the same.
        *([(["photo.png", "-o", "/proc/out.png"], "cannot be written")] if Path("/proc/self").exists() else []),
        (["photo.png", "-o", "out.xyz"], "unknown file format"),
        (["photo.png", marked, "-o", "photo.png"], "is a file"),
    ):
        for command in (["embed", *words, "--key", "my.key"], ["attack", *words, "--attack", "jpeg"]):
            code, _, err = onrw(*command)
            assert code == 2 and reason in err, (words, err)
    assert (tmp_path / marked).read_bytes() == before
    assert onrw("attack", marked, "-o", marked, "--attack", "jpeg=40", "--overwrite")[0] == 0
    assert (tmp_path / marked).read_bytes() != before


@pytest.mark.parametrize(
    "words",
    [
        ("embed", "", "-o", "a.png"),
        ("embed", "a.png", "-o", "", "--overwrite"),
        ("extract", "a.png", "", "--key", "my.key"),
        ("extract", "a.png", "--key", ""),
        ("lookup", "--registry", ""),
        ("key", "new", "-o", ""),
    ],
)
def test_empty_names_are_not_the_current_folder(onrw, words):
    """As of a shell variable without a value."""
    code, _, err = onrw(*words)
    assert code == 2 and "the name is empty" in err


def test_what_a_command_reads_is_no_result_of_it(onrw, marked, tmp_path):
    """Not even with --overwrite: a lost key or registry cannot be restored."""
    photo("mask.png")
    Path("link").symlink_to("my.key")
    code = onrw("embed", "photo.png", "-o", "first.png", "--key", "my.key", "--id", "1", "--registry", "ids.db")[0]
    assert code == 0
    kept = {name: Path(name).read_bytes() for name in ("my.key", "ids.db", "mask.png")}
    embed = ["embed", "photo.png", "--key", "my.key", "--id", "1", "--overwrite"]
    for words, option in (
        (["verify", marked, "--key", "my.key", "--html", "./my.key", "--overwrite"], "--key"),
        (["verify", marked, "--key", "my.key", "--html", "link", "--overwrite"], "--key"),
        (
            ["verify", marked, "--key", "my.key", "--registry", "ids.db", "--html", "ids.db", "--overwrite"],
            "--registry",
        ),
        ([*embed, "-o", "mask.png", "--mask", "mask.png"], "--mask"),
        ([*embed, "-o", "new.png", "--registry", "new.png"], "--registry"),
        (
            ["c2pa", marked, "--key", "my.key", "-o", "p.png", "--private-key", "p.png", "--certificate", "c"],
            "--private",
        ),
    ):
        code, _, err = onrw(*words)
        assert code == 2 and f"is the file of {option}" in err, (words, err)
    assert kept == {name: Path(name).read_bytes() for name in kept} and not Path("new.png").exists()


@pytest.mark.parametrize("case", ["key", "link", "mask", "journal", "ids.db-journal", "ids.db-wal", "linked-wal"])
def test_no_result_in_a_folder_is_a_file_of_an_option(onrw, case):
    """Results in a folder have names that the command line does not show."""
    Path("in").mkdir()
    Path("out").mkdir()
    photo("in/a.png")
    words, kept, option = ["in", "-o", "out", "--key", "my.key"], "my.key", "--key"
    if case == "key":
        Path("my.key").rename(kept := "out/a.png")
        words[-1] = kept
    elif case == "link":
        Path("out/a.png").symlink_to("../my.key")
    elif case == "mask":
        photo(kept := "in/mask.png")
        words, option = ["in", "-o", "in", "--key", "my.key", "--mask", kept], "--mask"
    elif case == "journal":
        Path("my.key").rename(kept := "out/onrw-embed.jsonl")
        words[-1] = kept
    else:
        Path("my.key").rename(kept := case)
        if case == "linked-wal":
            Path("ids.db").symlink_to("linked")
        words = ["in", "-o", "out", "--key", kept, "--registry", "ids.db"]
    before = Path(kept).read_bytes()
    code, out, err = onrw("embed", *words, "--id", "1", "--overwrite")
    assert code == 2 and out == "" and f"is the file of {option}" in err
    assert Path(kept).read_bytes() == before and not Path("ids.db").exists()


def test_no_result_is_a_file_of_the_registrys_database_or_the_folders_journal(onrw, marked):
    for side in ("-journal", "-wal", "-shm"):
        for words in (["verify", marked, "--html"], ["embed", "photo.png", "--id", "1", "--format", "png", "-o"]):
            code, _, err = onrw(*words, f"ids.db{side}", "--key", "my.key", "--registry", "ids.db", "--overwrite")
            assert code == 2 and "a file of the registry's database" in err, words
    Path("in").mkdir()
    photo("in/a.png")
    Path("out").mkdir()
    Path("out/onrw-embed.jsonl").write_text("{}\n")
    Path("out/a.png").symlink_to("onrw-embed.jsonl")
    code, _, err = onrw("embed", "in", "-o", "out", "--key", "my.key", "--overwrite")
    assert code == 2 and "is the folder's journal" in err
    assert Path("out/onrw-embed.jsonl").read_text() == "{}\n" and not Path("ids.db").exists()


def test_a_result_that_is_a_link_to_another_input_is_refused(onrw):
    for name in ("a.png", "b.png"):
        photo(name)
    Path("out").mkdir()
    Path("out/a.png").symlink_to("../b.png")
    for words in (["embed", "--key", "my.key"], ["attack", "--attack", "jpeg"]):
        code, _, err = onrw(words[0], "a.png", "b.png", "-o", "out", *words[1:], "--overwrite")
        assert code == 2 and "would replace the input b.png" in err


def test_a_report_does_not_replace_the_examined_image(onrw, marked):
    before = Path(marked).read_bytes()
    code, _, err = onrw("verify", marked, "--html", f"./{marked}", "--overwrite")
    assert code == 2 and "is an input" in err and Path(marked).read_bytes() == before


def test_a_folder_may_be_named_like_an_extractor(onrw):
    Path("in").mkdir()
    photo("in/a.png")
    assert onrw("embed", "in", "-o", "keyed", "--key", "my.key", "--id", "1")[0] == 0


def test_texts_that_are_not_unicode_are_refused_before_the_work(onrw):
    photo("photo.png")
    for option in ("--note", "--prompt"):
        code, _, err = onrw(
            "embed", "photo.png", "-o", "a.png", "--key", "my.key", "--registry", "a.db", option, "\udcff"
        )
        assert code == 2 and f"{option}: has bytes that are not UTF-8" in err and not Path("a.db").exists()


def test_results_that_are_links_to_one_file(onrw):
    photo("a.png")
    photo("b.png", side=256)
    Path("out").mkdir()
    photo("out/a.png")
    Path("out/b.png").symlink_to("a.png")
    code, _, err = onrw("attack", "a.png", "b.png", "-o", "out", "--attack", "jpeg", "--overwrite")
    assert code == 2 and "would both become" in err


@pytest.mark.parametrize("names", [("A.png", "a.png"), ("\u00e9.png", "e\u0301.png")], ids=["case", "unicode"])
def test_results_whose_names_are_one_file_on_this_file_system(onrw, monkeypatch, names):
    """As on Windows and macOS, where the second would replace the first."""
    for folder, name in zip("xy", names, strict=True):
        Path(folder).mkdir()
        photo(f"{folder}/{name}")
    words = ("attack", "x", "y", "-o", "out", "--attack", "jpeg")
    code, _, err = onrw(*words)
    two = len(list(Path("out").iterdir())) == 2
    assert (code == 0 and two) or "would both become" in err
    exists = Path.exists

    def folded(path):
        return exists(path) or any(exists(path.with_name(name)) for name in (f".onrw-{one}.tmp" for one in names))

    monkeypatch.setattr(Path, "exists", folded)
    code, _, err = onrw(*words, "--overwrite")
    assert code == 2 and "would both become" in err
    assert sorted(path.name for path in Path("out").iterdir() if path.name.startswith(".")) == []


def test_a_folder_named_like_a_video(onrw):
    Path("film.mp4").mkdir()
    photo("film.mp4/a.png")
    assert onrw("embed", "film.mp4", "-o", "out", "--key", "my.key")[0] == 0 and Path("out/a.png").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no broken pipes")
def test_an_output_that_nobody_reads_ends_the_run(onrw, tmp_path):
    """It is no failure of the photos."""
    for name in ("a.png", "b.png"):
        photo(name)
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "onrw_core", "detect", "a.png", "b.png", "--plain"]
    done = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    os.close(write)
    assert done.returncode == cli.BROKEN_PIPE
    assert done.stderr.splitlines() == ["onrw: error: nobody reads the output any more; stopped"]


def test_two_photos_of_one_name(onrw, tmp_path):
    photo("a.png")
    photo("a.jpg", side=256)
    assert onrw("embed", "a.png", "a.jpg", "-o", "out", "--key", "my.key", "--format", "png")[0] == 0
    assert {path.name for path in Path("out").iterdir()} == {"a.png", "a.jpg.png", "onrw-embed.jsonl"}
    Path("b").mkdir()
    photo("b/a.png")
    code, _, err = onrw("embed", "a.png", "b", "-o", "other", "--key", "my.key")
    assert code == 2 and "would both become" in err and not Path("other").exists()


def test_empty_folder(onrw, tmp_path):
    (tmp_path / "none").mkdir()
    assert onrw("embed", "none", "-o", "out", "--key", "my.key")[0] == 2


def test_unknown_attack(onrw):
    photo("photo.png")
    assert "unknown attack 'melt'" in onrw("attack", "photo.png", "-o", "o.png", "--attack", "melt")[2]


def test_unknown_model(onrw, monkeypatch):
    monkeypatch.setattr(embed, "load_model", models.load_model)
    photo("photo.png")
    code, _, err = onrw("embed", "photo.png", "-o", "o.png", "--key", "my.key", "--model", "nowhere")
    assert code == 2 and "nowhere" in err
    open("weights.ckpt", "wb").close()
    code, _, err = onrw("embed", "photo.png", "-o", "o.png", "--key", "my.key", "--model", "weights.ckpt")
    assert code == 2 and "safetensors" in err


def test_interruption_leaves_nothing_behind(onrw, tmp_path, monkeypatch):
    photo("photo.png")
    before = sorted(path.name for path in tmp_path.iterdir())

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "embed", interrupted)
    code, _, err = onrw("embed", "photo.png", "-o", "out.png", "--key", "my.key")
    assert code == 130 and "interrupted" in err
    monkeypatch.setattr(pipeline, "embed", pixel_embed)
    monkeypatch.setattr(Image.Image, "save", interrupted)
    assert onrw("embed", "photo.png", "-o", "out.png", "--key", "my.key")[0] == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == before


# ---- the surface


@pytest.mark.parametrize("command", cli.COMMANDS, ids=lambda command: " ".join(command.words))
def test_the_example_of_every_command_passes_the_checks_of_arguments(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = command.example.replace("\\\n", " ").split("\n")
    for line in lines:
        words = shlex.split(line.strip().partition(" | ")[0])[1:]
        cli.check_arguments(cli.build_parser(words).parse_args(words))


def test_help_has_an_example(onrw):
    for command in cli.COMMANDS:
        if command.words[0] != "bench":
            code, out, _ = onrw(*command.words, "--help")
            assert code == 0 and f"onrw {' '.join(command.words)}" in out.split("example:")[1]
    for group in cli.GROUPS:
        assert f"onrw {group}" in onrw(group, "--help")[1].split("example:")[1]
    code, out, _ = onrw("--help")
    assert code == 0 and all(command.words[0] in out for command in cli.COMMANDS)
    assert onrw()[0] == 2 and onrw("nonsense")[0] == 2


def test_presets_are_the_library_s():
    assert set(embed.PRESETS) == set(PRESETS) and embed.MIXES == tuple(MIXES)


def test_kinds_of_file_are_the_library_s():
    assert set(embed.SUFFIXES.values()) <= {KEEP, *images.FORMATS}


def test_help_loads_no_torch():
    code = (
        "import sys; from onrw_core.commands.cli import build_parser; build_parser(['embed']);"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False", done.stderr


def test_names_that_the_terminal_cannot_show(tmp_path):
    command = [sys.executable, "-m", "onrw_core", "key", "new", "-o", "schlüssel.key"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, env=environment, timeout=60)
    assert done.returncode == 0 and b"schl\\xfcssel.key: new key" in done.stdout, done.stderr
    assert len(list(tmp_path.iterdir())) == 1


def test_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "onrw_core", "--version"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.startswith("onrw ")


def test_a_transparent_image_is_refused_by_name(onrw):
    Image.new("RGBA", (SIDE, SIDE), (90, 120, 60, 0)).save("clear.png")
    code, _, err = onrw("embed", "clear.png", "-o", "m.png", "--key", "my.key", "--id", "1")
    assert code == 2 and "transparent everywhere" in err and "mask" not in err
    assert not Path("m.png").exists()
