"""TorchScript decoders: explicit permission, probing, input conventions, gradients."""

import pytest
import torch
from torch import nn

from onrw_core.extractors.base import ExtractorError
from onrw_core.extractors.loading import load_extractor
from onrw_core.extractors.third_party.torchscript import TorchScriptExtractor, load_torchscript


class Means(nn.Module):
    """Two bits: red mean and blue mean."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x[:, 0].mean((1, 2)), x[:, 2].mean((1, 2))], 1)


class FixedSize(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3 * 16 * 16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.flatten(1))


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "means.pt"
    torch.jit.script(Means()).save(path)
    return path


def test_loads_only_when_allowed(path):
    with pytest.raises(ExtractorError, match="contains code: allow it"):
        load_extractor(path)
    extractor = load_extractor(path, allow_torchscript=True)
    assert (extractor.name, extractor.num_bits) == ("means", 2)


def test_reads_and_passes_gradients(path):
    x = torch.rand(2, 3, 40, 24, generator=torch.Generator().manual_seed(0)).requires_grad_()
    logits = load_extractor(path, allow_torchscript=True).logits(x)
    torch.testing.assert_close(logits[:, 1], x[:, 2].mean((1, 2)))
    logits.sum().backward()
    assert x.grad[:, 0].abs().sum() > 0 and x.grad[:, 1].abs().sum() == 0


@pytest.mark.parametrize(("values", "expected"), [("unit", 0.5), ("symmetric", 0.0), ("imagenet", 0.065502)])
def test_value_conventions(path, values, expected):
    extractor = TorchScriptExtractor(load_torchscript(path, True), values=values)
    assert extractor.logits(torch.full((1, 3, 8, 8), 0.5))[0, 0].item() == pytest.approx(expected, abs=1e-5)


def test_a_fixed_input_size_must_be_said():
    module = torch.jit.script(FixedSize())
    with pytest.raises(ExtractorError, match="takes a single size"):
        TorchScriptExtractor(module)
    assert TorchScriptExtractor(module, size=16).logits(torch.rand(3, 3, 33, 70)).shape == (3, 4)


def test_modules_that_are_no_decoders():
    class Same(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    with pytest.raises(ExtractorError, match=r"a decoder gives \(2, bits\)"):
        TorchScriptExtractor(torch.jit.script(Same()))
    with pytest.raises(ExtractorError, match="choose from unit"):
        TorchScriptExtractor(torch.jit.script(Means()), values="bytes")


def test_files_that_are_none(tmp_path):
    path = tmp_path / "x.torchscript.pt"
    path.write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(ExtractorError, match="not a TorchScript file"):
        load_torchscript(path, True)
