"""The two verbs, on the embedded model."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import onrw_core as onrw
from onrw_core.extractors.base import Extractor
from onrw_core.extractors.keyed import extractor as keyed
from onrw_core.extractors.reading import Detection
from onrw_core.imaging import files
from onrw_core.imaging.geometry import Geometry
from onrw_core.imaging.source_type import read_source_type, with_source_type
from onrw_core.payload.message import raw

KEY = onrw.Key(bytes(range(32)))
SIDE = 128
QUICK = onrw.PRESETS["fast"].with_(iterations=2, attacks=2, target_psnr=42.0)  # a small image, a long message
MONUMENT = Path(onrw.__file__).parent / "samples" / "monument.jpg"


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    """A PNG file with an alpha channel and a resolution."""
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    with Image.open(MONUMENT) as picture:
        small = picture.convert("RGB").resize((SIDE, SIDE))
    small.putalpha(Image.new("L", small.size, 200))
    small.save(path, dpi=(72, 72))
    return path


@pytest.fixture(scope="module")
def marked(photo):
    return onrw.embed(photo, text="Ann 5", key=KEY, settings=QUICK, size=SIDE)


def test_what_is_embedded_is_extracted(marked, tmp_path):
    marked.save(tmp_path / "marked.png")
    reading = onrw.extract(tmp_path / "marked.png", key=KEY)
    assert reading.detected and reading.message.text == "Ann 5"
    assert reading.match(marked.bits).bit_accuracy > 0.9  # error correction repairs the rest
    assert not onrw.extract(tmp_path / "marked.png", key=onrw.Key(bytes(32))).detected
    assert marked.psnr == pytest.approx(QUICK.target_psnr, abs=0.1)


def test_frames_are_read_together(marked):
    reading = onrw.extract(torch.stack([marked.image, marked.image]), key=KEY)
    assert reading.detected and reading.message.text == "Ann 5"


def test_what_came_with_the_file_is_kept(photo, marked, tmp_path):
    marked.save(tmp_path / "marked.png")
    with pytest.raises(files.ImageError, match="overwrite"):
        marked.save(tmp_path / "marked.png")
    marked.save(tmp_path / "marked.png", overwrite=True)
    written, original = files.load(tmp_path / "marked.png"), files.load(photo)
    assert torch.equal(written.alpha, original.alpha) and written.info["dpi"] == original.info["dpi"]
    assert torch.equal(written.rgb, marked.image)


FORMS = {"PIL": Image.open, "tensor": lambda path: files.load(path).rgb}


def test_the_label_is_written_on_request(marked, tmp_path):
    with pytest.raises(ValueError, match="no public label"):
        marked.save(tmp_path / "none.png", write_label=True)
    labelled = replace(marked, label="digitalCapture")
    labelled.save(tmp_path / "without.png")
    labelled.save(tmp_path / "with.png", write_label=True)
    stated = [
        read_source_type(files.load(tmp_path / f"{name}.png").info.get("xmp", b"")) for name in ("without", "with")
    ]
    assert stated == [None, "digitalCapture"]
    with pytest.raises(files.ImageError, match="BMP has no metadata"):
        labelled.save(tmp_path / "with.bmp", write_label=True)


def test_the_label_is_that_of_the_public_layer(photo, tmp_path, monkeypatch, caplog):
    """Which an image that has one keeps."""
    found = Detection(True, "digitalCapture", 2, -20.0, None, Geometry.identity())
    monkeypatch.setattr(keyed, "detect", lambda *_, **__: found)
    settings = onrw.PRESETS["quick"].with_(iterations=1, target_psnr=42.0)
    for label in ("trainedAlgorithmicMedia", None):
        second = onrw.embed(
            files.load(photo).rgb[:, :64, :64], key=KEY, id="1", settings=settings, label=label, size=64
        )
        assert second.label == "digitalCapture"
    caplog.clear()
    second.save(tmp_path / "a.png", write_label=True)
    assert read_source_type(files.load(tmp_path / "a.png").info["xmp"]) == "digitalCapture" and not caplog.text
    stated = with_source_type(b"", "trainedAlgorithmicMedia")
    second = replace(second, _original=replace(second._original, info={"xmp": stated}))
    second.save(tmp_path / "b.png")
    assert "label in the metadata, trainedAlgorithmicMedia, is not changed" in caplog.text
    second.save(tmp_path / "c.png", write_label=True)
    assert "is replaced by digitalCapture" in caplog.text


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_images_in_memory_are_marked_alike(photo, marked, form):
    again = onrw.embed(form(photo), text="Ann 5", key=KEY, settings=QUICK, size=SIDE)
    # A tensor has no opacity: the even one of the file changes rounding at most.
    difference = (again.image - marked.image).abs()
    assert difference.max() < 1.5 / 255 and (difference > 0).float().mean() < 1e-2
    reading = onrw.extract(again.image, key=KEY)
    assert reading.detected and reading.message.text == "Ann 5"


def test_a_pillow_image_keeps_its_alpha(photo, marked, tmp_path):
    picture = files.from_pil(Image.open(photo))
    assert torch.equal(picture.alpha, files.load(photo).alpha) and picture.path is None
    with pytest.raises(files.ImageError, match="more than 8 bits"):
        files.from_pil(Image.new("I;16", (SIDE, SIDE)))


class Means(Extractor):
    """Eight bits: in which columns the image is bright."""

    name, num_bits = "means", 8

    def logits(self, images, geometry=None):
        columns = torch.nn.functional.adaptive_avg_pool2d(images.mean(1, keepdim=True), (1, self.num_bits))
        return columns[:, 0, 0] - columns.mean((-2, -1))


def test_raw_bits_for_another_extractor_need_no_key(photo):
    marked = onrw.embed(photo, bits="01100101", extractor=Means(), settings=QUICK, size=SIDE)
    assert torch.equal(marked.bits, raw("01100101").bits)
    reading = onrw.extract(marked.image, extractor=Means())
    assert reading.bits.shape == (8,) and reading.message.kind is None and reading.pose is None


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ({"key": KEY}, "give one of text, id and bits"),
        ({"key": KEY, "text": "a", "id": "1"}, "give one of text, id and bits"),
        ({"text": "Ann 5"}, "needs a key"),
        ({"text": "Ann 5", "extractor": Means()}, "key: a text or an id needs a key"),
        ({"key": KEY, "bits": "01"}, "2 bits: the extractor 'keyed' reads 32, 48, 64, 96, 128"),
        (
            {"bits": "01100101", "extractor": Means(), "settings": "endure"},
            "endure is for ONRW's own watermark; use fast",
        ),
        (
            {"key": KEY, "text": "Ann 5", "settings": "best"},
            "no preset 'best'; choose from reference, fast, endure, quick, paper",
        ),
    ],
)
def test_inputs_that_cannot_be_used_are_named(photo, inputs, reason):
    with pytest.raises(ValueError, match=reason):
        onrw.embed(photo, **inputs)


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ({"key": "my.key"}, "key: is a str; load it with Key.load"),
        ({"text": 5}, "text: is a int; give str"),
        ({"text": None, "bits": [0, 1]}, "bits: is a list; give str or Tensor"),
        ({"mask": "mask.png"}, "mask: is a str; give Tensor"),
        ({"settings": 5}, "settings: is a int; give str or Settings"),
        ({"size": 7}, "size: is 7; give a whole number of pixels, at least 64"),
        ({"device": "nowhere"}, "device nowhere: cannot be used"),
    ],
)
def test_inputs_of_another_type_are_named(photo, inputs, reason):
    with pytest.raises(ValueError, match=reason):
        onrw.embed(photo, **({"key": KEY, "text": "Ann 5"} | inputs))


@pytest.mark.parametrize("verb", [onrw.extract, onrw.detect])
def test_what_is_no_image_is_named(verb):
    for image in (None, b"", torch.zeros(3, SIDE, SIDE).numpy()):
        with pytest.raises(ValueError, match="image: is a .*; give a path, a Pillow image or a tensor"):
            verb(image)


@pytest.mark.parametrize(
    "mode",
    [torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16)],
    ids=["no_grad", "inference_mode", "autocast"],
)
def test_modes_of_the_caller_change_nothing(marked, photo, mode):
    pixels = files.load(photo).rgb
    with mode:
        again = onrw.embed(pixels.clone(), text="Ann 5", key=KEY, settings=QUICK, size=SIDE)
        assert onrw.extract(again.image, key=KEY).message.text == "Ann 5"
    assert torch.equal(again.image, onrw.embed(pixels, text="Ann 5", key=KEY, settings=QUICK, size=SIDE).image)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_an_image_of_one_colour_is_marked(value):
    settings = onrw.PRESETS["quick"].with_(iterations=2)
    marked = onrw.embed(torch.full((3, 64, 64), value), id="1", key=KEY, settings=settings, size=64)
    assert marked.psnr > 40 and not torch.equal(marked.image, torch.full((3, 64, 64), value))


@pytest.mark.parametrize(
    "settings", [{"iterations": 1.5}, {"target_psnr": -5.0}, {"target_psnr": float("inf")}], ids=str
)
def test_settings_out_of_range_are_named(settings):
    with pytest.raises(ValueError, match=f"^{next(iter(settings))}"):
        onrw.PRESETS["quick"].with_(**settings)


def test_the_package_loads_no_torch_before_a_verb_is_used():
    code = "import sys, onrw_core as onrw; print('torch' in sys.modules); onrw.extract; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["False", "True"], done.stderr
    with pytest.raises(AttributeError, match="no attribute 'remove'"):
        getattr(onrw, "remove")  # noqa: B009
