"""Others' decoders on the command line: converting, marking, reading; a message or nothing, and what bad files say."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from onrw_core import images, pipeline
from onrw_core.commands.decoders import INPUTS
from onrw_core.extractors import torchscript
from onrw_core.extractors.base import Extractor
from onrw_core.extractors.hidden import HiddenExtractor
from onrw_core.extractors.plain import message_log10_p, read_plain
from onrw_core.keys import Key
from onrw_core.message import encode_id, encode_text, false_accept

from .test_cli import onrw, photo  # noqa: F401  (onrw is a fixture)

KEY = Key(bytes(range(32)))
CHANNELS = 96


class Painted(Extractor):
    """Bits as the means of k columns of the picture."""

    name = "painted"

    def __init__(self, num_bits):
        self.num_bits = num_bits

    def logits(self, images, geometry=None):
        return nn.functional.adaptive_avg_pool2d(images.mean(1, keepdim=True), (1, self.num_bits))[:, 0, 0] - 0.5


def painted(bits):
    return bits.float().repeat_interleave(2).expand(3, 8, -1)


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
        return SimpleNamespace(image=marked, psnr=40.0, ssim=0.99, iterations=40, seconds=0.5)

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


# ---- statistics


@pytest.mark.parametrize("size", [32, 48, 64, 96, 128])
def test_a_message_says_more_the_fewer_bits_were_wrong(size):
    values = [message_log10_p(size, wrong) for wrong in range(4)]
    assert values == sorted(values) and values[0] < values[1]
    assert values[-1] <= math.log10(false_accept(size)) + 1e-12


def test_random_bits_are_messages_as_rarely_as_said():
    generator = torch.Generator().manual_seed(0)
    counts, n = {-3.0: 0, -2.0: 0}, 1000
    for _ in range(n):
        values = torch.rand(3, 4, 64, generator=generator)[:, :, torch.randperm(64, generator=generator)]
        log10_p = read_plain(Painted(32), values, KEY).log10_p
        for limit in counts:
            counts[limit] += log10_p <= limit
    assert counts[-3.0] <= n * 1e-3 + 3 * (n * 1e-3) ** 0.5 and counts[-2.0] <= n * 1e-2


def test_messages_and_nothing():
    for message, size in ((encode_id("c0ffee", KEY), 48), (encode_text("Ann 5", KEY), 64)):
        reading = read_plain(Painted(size), painted(message.bits), KEY)
        assert reading.detected and reading.message.value == message.value and reading.log10_p < -6
        wrong = read_plain(Painted(size), painted(message.bits), Key(bytes(32)))
        assert not wrong.detected and wrong.message.value is None and torch.equal(wrong.bits, message.bits)
        assert read_plain(Painted(size), painted(message.bits), None).message.value is None
    # 32 bits say too little for 1e-6, and so nothing is said.
    short = encode_id("beef", KEY, 32)
    reading = read_plain(Painted(32), painted(short.bits), KEY)
    assert not reading.detected and reading.message.value is None and -6 < reading.log10_p < -4
    assert read_plain(Painted(32), painted(short.bits), KEY, fpr=1e-4).message.id == "beef"


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
    assert code == 2 and "fails on a picture of" in err and "Traceback" not in err
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
