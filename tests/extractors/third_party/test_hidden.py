"""HiDDeN decoders: the published architecture, naming and whitening; files and the converter."""

import zipfile

import pytest
import torch
from safetensors import safe_open
from torch import nn

from onrw_core.extractors.base import ExtractorError
from onrw_core.extractors.loading import convert, load_extractor
from onrw_core.extractors.third_party.hidden import MEAN, STD, HiddenExtractor, hidden_state


class Block(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        norm = nn.BatchNorm2d(outputs, eps=1e-3)
        self.layers = nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), norm, nn.GELU())

    def forward(self, x):
        return self.layers(x)


class Decoder(nn.Module):
    """The published architecture, written naively."""

    def __init__(self, bits=12, channels=8, blocks=3):
        super().__init__()
        sizes = [3] + [channels] * blocks + [bits]
        self.layers = nn.Sequential(*map(Block, sizes, sizes[1:]), nn.AdaptiveAvgPool2d((1, 1)))
        self.linear = nn.Linear(bits, bits)

    def forward(self, x):
        return self.linear(self.layers(x).squeeze(-1).squeeze(-1))


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    decoder = Decoder()
    for norm in [m for m in decoder.modules() if isinstance(m, nn.BatchNorm2d)]:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        norm.weight.data.uniform_(0.5, 2)
        norm.bias.data.normal_()
    return decoder.eval()


def normalised(images):
    return (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def images(*size):
    return torch.rand(*size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [(32, 32), (17, 45)])
def test_equals_the_naive_network(decoder, size):
    x = images(2, 3, *size)
    extractor = HiddenExtractor(decoder.state_dict())
    assert extractor.num_bits == 12
    torch.testing.assert_close(extractor.logits(x), decoder(normalised(x)), atol=1e-5, rtol=1e-5)


def test_loss_is_large_for_wrong_bits_but_pulls_most_at_near_ones():
    class Plain(HiddenExtractor):
        num_bits = 3

        def __init__(self):
            pass

        def logits(self, images, geometry=None):
            return images.mean((2, 3))

    x = torch.tensor([-2.0, -0.01, 2.0])[None, :, None, None].requires_grad_()
    loss, logits = Plain().loss_and_logits(x, torch.ones(3, dtype=torch.int64))
    far, near, right = torch.autograd.grad(loss.sum(), x)[0].flatten().neg().tolist()
    assert loss.shape == (1,) and logits.shape == (1, 3) and float(Plain().loss(-x, torch.zeros(3)).detach()) > 0
    assert near > 3 * far > 1000 * right >= 0


def test_gradients_flow_to_the_image_only(decoder):
    x = images(1, 3, 16, 16).requires_grad_()
    extractor = HiddenExtractor(decoder.state_dict())
    extractor.loss(x, torch.ones(12, dtype=torch.int64)).sum().backward()
    assert x.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in extractor._network.parameters())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"encoder_decoder": {f"module.decoder.{k}": v for k, v in s.items()}},
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {f"decoder.{k}": v for k, v in s.items()} | {"encoder.layers.0.layers.0.weight": torch.ones(1)},
    ],
)
def test_finds_the_decoder_in_checkpoints(decoder, wrap):
    found = hidden_state(wrap(decoder.state_dict()))
    assert torch.equal(found["linear.weight"], decoder.linear.weight)
    assert HiddenExtractor(found).num_bits == 12


def test_folds_the_whitening_layer(decoder):
    whitened = nn.Sequential(decoder, nn.Linear(12, 12))
    x = images(2, 3, 24, 24)
    extractor = HiddenExtractor(whitened.state_dict())
    torch.testing.assert_close(extractor.logits(x), whitened(normalised(x)), atol=1e-5, rtol=1e-5)


def test_files_and_converter(decoder, tmp_path):
    x = images(1, 3, 20, 20)
    expected = decoder(normalised(x))
    torch.save(decoder.state_dict(), tmp_path / "decoder.pth")
    torch.testing.assert_close(load_extractor(tmp_path / "decoder.pth").logits(x), expected, atol=1e-5, rtol=1e-5)
    target = convert(tmp_path / "decoder.pth", tmp_path / "decoder.safetensors")
    torch.testing.assert_close(load_extractor(target).logits(x), expected, atol=1e-5, rtol=1e-5)
    with safe_open(target, framework="pt") as file:
        metadata = file.metadata()
    assert (metadata["architecture"], metadata["num_bits"], metadata["source"]) == (
        "hidden",
        "12",
        "decoder.pth",
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["decoder.pth", "decoder.safetensors"]
    with pytest.raises(ExtractorError, match="exists already"):
        convert(tmp_path / "decoder.pth", target)


def test_torchscript_of_a_whitened_decoder_converts_once_allowed(decoder, tmp_path):
    whitened = nn.Sequential(decoder, nn.Linear(12, 12)).eval()
    torch.jit.script(whitened).save(tmp_path / "whitened.torchscript.pt")
    with pytest.raises(ExtractorError, match="contains code"):
        convert(tmp_path / "whitened.torchscript.pt", tmp_path / "w.safetensors")
    convert(tmp_path / "whitened.torchscript.pt", tmp_path / "w.safetensors", allow_torchscript=True)
    x = images(1, 3, 20, 20)
    read = load_extractor(tmp_path / "w.safetensors").logits(x)
    torch.testing.assert_close(read, whitened(normalised(x)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("layers.1.layers.1.running_var"), "running_var' is missing"),
        (lambda s: s.update({"layers.1.layers.0.weight": torch.zeros(8, 5, 3, 3)}), "has shape"),
        (lambda s: s["linear.weight"].fill_(float("nan")), "not finite"),
        (lambda s: s.pop("linear.weight"), "no HiDDeN decoder"),
        (lambda s: s["layers.0.layers.1.running_var"].fill_(-1), "negative"),
        (lambda s: s.update({"linear.weight": torch.zeros(0, 12), "linear.bias": torch.zeros(0)}), "is empty"),
        (lambda s: s.update({"layers.0.layers.0.bias": torch.zeros(3, 3)}), "bias' has shape"),
        (lambda s: s.update({"layers.0.layers.0.weight": "text"}), "no HiDDeN decoder"),
        (lambda s: s.update({"layers.1.layers.0.weight": "text"}), "is missing"),
        (lambda s: s.update({7: torch.zeros(1)}) or s.pop("linear.weight"), "no HiDDeN decoder"),
        (lambda s: s.update({"linear.weight": torch.zeros(1).expand(10**6, 10**6)}), "no HiDDeN decoder"),
        (lambda s: s.update({"linear.weight": s["linear.weight"].to_sparse()}), "no HiDDeN decoder"),
        (lambda s: s.update({"linear.weight": s["linear.weight"].to("meta")}), "no HiDDeN decoder"),
    ],
)
def test_damaged_weights_are_named(decoder, change, message):
    state = {k: v.clone() for k, v in decoder.state_dict().items()}
    change(state)
    with pytest.raises(ExtractorError, match=message):
        HiddenExtractor(state)


def test_dictionaries_that_hold_themselves():
    state = {}
    state["model"] = state["state_dict"] = state
    with pytest.raises(ExtractorError, match="no HiDDeN decoder"):
        HiddenExtractor(state)


def test_damaged_whitening_is_named(decoder):
    for shape in ((12, 11), (12,), (0, 12)):
        state = nn.Sequential(decoder, nn.Linear(12, 12)).state_dict() | {"1.weight": torch.zeros(shape)}
        with pytest.raises(ExtractorError, match="damaged HiDDeN decoder"):
            HiddenExtractor(state)


def test_a_file_that_unpacks_to_more_than_a_decoder_is_refused(tmp_path):
    path = tmp_path / "decoder.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("decoder/data.pkl", bytes(300 << 20))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(ExtractorError, match="larger than 256 MB"):
        load_extractor(path)


class Malicious:
    def __reduce__(self):
        return (print, ("this must never run",))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".pt", ".onnx"])
def test_files_that_are_none(tmp_path, suffix, capsys):
    path = tmp_path / f"decoder{suffix}"
    for content in (b"", b"nothing of the kind", bytes(range(256)) * 8):
        path.write_bytes(content)
        with pytest.raises(ExtractorError, match="decoder"):
            load_extractor(path)
    if suffix == ".pth":
        torch.save(Malicious(), path)
        with pytest.raises(ExtractorError, match="state dict"):
            load_extractor(path)
        assert "never" not in capsys.readouterr().out
    with pytest.raises(ExtractorError, match="choose from keyed, rivagan"):
        load_extractor(tmp_path / "missing.pth")
    with pytest.raises(ExtractorError, match="needs a key"):
        load_extractor("keyed")
