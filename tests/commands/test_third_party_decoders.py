"""Others' decoders on the command line: converting, marking, reading; a message or nothing, and what bad files say."""

import json

import pytest
import torch
from torch import nn

from onrw_core import pipeline
from onrw_core.commands.decoders import INPUTS
from onrw_core.extractors.third_party import torchscript
from onrw_core.extractors.third_party.hidden import HiddenExtractor
from onrw_core.imaging import files as images
from onrw_core.payload.keys import Key

from .. import dummies
from .test_cli import onrw, photo  # noqa: F401  (onrw is a fixture)

KEY = Key(bytes(range(32)))
CHANNELS = 96


@pytest.fixture
def long(monkeypatch):
    """Pixels optimised until a decoder of random weights reads every bit."""

    def mark(image, model, autoencoder, extractor, bits, **_):
        delta = torch.zeros_like(image, requires_grad=True)
        optimiser = torch.optim.Adam([delta], 0.03)
        for _ in range(100):
            optimiser.zero_grad()
            extractor.loss((image + delta).clamp(0, 1)[None], bits).mean().backward()
            optimiser.step()
        marked = (image + delta.detach()).clamp(0, 1)
        return dummies.marked(marked, bits, extractor)

    monkeypatch.setattr(pipeline, "embed", mark)


def hidden(bits=48, seed=0):
    """A state dict of one block, large enough that pixels can drive it; about zero on the photo of the tests."""
    g = torch.Generator().manual_seed(seed)
    state = {
        "layers.0.layers.0.weight": torch.randn(CHANNELS, 3, 3, 3, generator=g),
        "layers.0.layers.0.bias": torch.zeros(CHANNELS),
        "layers.0.layers.1.weight": torch.ones(CHANNELS),
        "layers.0.layers.1.bias": torch.zeros(CHANNELS),
        "layers.0.layers.1.running_mean": torch.zeros(CHANNELS),
        "layers.0.layers.1.running_var": torch.ones(CHANNELS),
        "linear.weight": torch.randn(bits, CHANNELS, generator=g),
        "linear.bias": torch.zeros(bits),
    }
    photo("photo.png", 64)
    state["linear.bias"] = -HiddenExtractor(state).logits(images.load("photo.png").rgb[None])[0]
    return state


# ---- the command line


def test_converts_marks_and_reads(onrw, long, tmp_path):  # noqa: F811
    torch.save({"state_dict": hidden()}, "dec.pth")
    code, out, err = onrw("convert", "dec.pth", "-o", "dec.safetensors")
    assert code == 0 and "hidden, 48 bits" in out, err
    photo("photo.png", 64)
    mark = ["embed", "photo.png", "--key", "my.key", "--extractor", "dec.safetensors", "--json"]
    code, out, err = onrw(*mark, "-o", "marked.png", "--id", "c0ffee", "--registry", "ids.db", "--note", "for Ann")
    assert code == 0, err
    bits = json.loads(out)["bits"]
    read = ["extract", "marked.png", "--extractor", "dec.safetensors"]
    code, out, _ = onrw(*read, "--key", "my.key", "--json", "--registry", "ids.db", "--expect", bits)
    fields = json.loads(out)
    assert code == 0 and fields["id"] == "c0ffee" and fields["detected"] and fields["bits"] == bits
    assert fields["match"] == {"bit_accuracy": 1.0, "log10_p": -14.45}
    assert [entry["note"] for entry in fields["registered"]] == ["for Ann"]
    assert "id c0ffee" in onrw(*read, "--key", "my.key")[1]
    assert "100.0% of the bits agree" in onrw(*read, "--key", "my.key", "--expect-id", "c0ffee")[1]
    # Without the key, and with another one, there is no message; the bits are there all the same.
    assert onrw("key", "new", "-o", "other.key")[0] == 0
    for words in ([], ["--key", "other.key"]):
        fields = json.loads(onrw(*read, *words, "--json")[1])
        assert not fields["detected"] and fields["id"] is None and fields["bits"] == bits
    unmarked = onrw("extract", "photo.png", "--extractor", "dec.safetensors", "--key", "my.key")[1]
    assert "nothing found" in unmarked


def test_what_third_party_decoders_do_not_have_is_refused_before_the_work(onrw, monkeypatch, caplog):  # noqa: F811
    torch.save(hidden(10), "dec.pth")
    words = ["embed", "photo.png", "-o", "marked.png", "--extractor", "dec.pth", "--bits", "0110100110"]
    for more, reason in (
        (["--preset", "endure"], "endure is for ONRW's own watermark; use fast with a third-party decoder"),
        (["--label", "digitalCapture", "--write-label"], "has no public layer"),
        (["--quality", "70"], "--target-psnr"),
    ):
        code, out, err = onrw(*words, *more, "--registry", "ids.db")
        assert code == 2 and reason in err and out == "", err
    monkeypatch.setattr(HiddenExtractor, "loss", lambda extractor, images, bits: images.mean((1, 2, 3)))
    assert onrw(*words)[0] == 3
    assert "a lower --target-psnr" in caplog.text and "--quality" not in caplog.text


def test_raw_bits_need_no_key(onrw):  # noqa: F811
    torch.save(hidden(10), "dec.pth")
    photo("photo.png", 64)
    words = ["embed", "photo.png", "-o", "marked.png", "--extractor", "dec.pth"]
    assert onrw(*words, "--bits", "0110100110")[0] == 0
    fields = json.loads(onrw("extract", "marked.png", "--extractor", "dec.pth", "--json", "--expect", "0110100110")[1])
    assert fields["bits"] == "0110100110" and fields["match"]["log10_p"] == -3.01
    for more, reason in (
        (["--bits", "01"], "one of 10"),
        (["--key", "my.key"], "raw bits only"),
        (["--key", "my.key", "--id", "1"], "raw bits only"),
        ([], "onrw key new"),
    ):
        code, _, err = onrw(*words, "--overwrite", *more)
        assert code == 2 and reason in err, err


def test_torchscript(onrw):  # noqa: F811
    class Half(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :, :32, :32].reshape(x.shape[0], 3, -1).mean(2) + x[:, 0, 99, 99, None]

    torch.jit.script(Half()).save("dec.pt")
    photo("photo.png")
    read = ["extract", "photo.png", "--extractor", "dec.pt"]
    code, _, err = onrw(*read)
    assert code == 2 and "allow it" in err
    for values in INPUTS:
        assert len(json.loads(onrw(*read, "--allow-torchscript", "--decoder-input", values, "--json")[1])["bits"]) == 3
    photo("small.png", 64)
    code, _, err = onrw("extract", "small.png", *read[2:], "--allow-torchscript")
    assert code == 2 and "fails on an image of" in err and "Traceback" not in err
    assert onrw("extract", "small.png", *read[2:], "--allow-torchscript", "--decoder-size", 128)[0] == 0


def test_inputs_are_the_library_s():
    assert torchscript.INPUTS == INPUTS


@pytest.mark.parametrize("command", ["extract", "embed", "convert"])
def test_files_that_are_no_decoders(onrw, tmp_path, command):  # noqa: F811
    photo("photo.png", 64)
    state = hidden()
    torch.save({**state, "linear.weight": torch.zeros(48, 3)}, "shapes.pth")
    torch.save({**state, "linear.bias": torch.full((48,), torch.nan)}, "nan.pth")
    torch.save([1, 2], "list.pth")
    (tmp_path / "words.pth").write_text("no weights")
    (tmp_path / "words.onnx").write_text("no weights")
    (tmp_path / "words.safetensors").write_text("no weights")
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04 cut")
    words = {
        "extract": lambda name: ["extract", "photo.png", "--extractor", name],
        "embed": lambda name: ["embed", "photo.png", "-o", "out.png", "--key", "my.key", "--extractor", name],
        "convert": lambda name: ["convert", name, "-o", "out.safetensors"],
    }[command]
    names = ["shapes.pth", "nan.pth", "list.pth", "words.pth", "words.onnx", "words.safetensors", "cut.pt", "none.pth"]
    for name in names:
        code, out, err = onrw(*words(name))
        assert code == 2 and err.startswith("onrw: error:") and out == "", (name, err)
        assert "decoder" in err or "not " in err or "neither" in err, err
    assert not (tmp_path / "out.png").exists() and not (tmp_path / "out.safetensors").exists()
