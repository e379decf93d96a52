"""RivaGAN's decoder in torch against onnxruntime; the ONNX reader."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import onrw_core
from onrw_core.extractors.base import ExtractorError
from onrw_core.extractors.loading import convert, load_extractor
from onrw_core.extractors.third_party.rivagan import SCALE, THRESHOLD, RivaganExtractor, onnx_tensors, rivagan_file


@pytest.fixture(scope="module")
def path():
    try:
        return rivagan_file()
    except ExtractorError:
        pytest.skip("needs the package invisible-watermark")


def images(*size):
    return torch.rand(*size, generator=torch.Generator().manual_seed(0))


def test_equals_onnxruntime(path):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    extractor = RivaganExtractor.load()
    assert extractor.num_bits == 32
    with Image.open(Path(onrw_core.__file__).parent / "samples" / "monument.jpg") as picture:
        photo = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)[None] / 255
    # On noise the outputs reach 200, where float32 itself is off by more than 1e-4.
    for x in (photo[..., :64, :64], photo[..., 100:148, 50:130]):
        frames = (x.flip(1) * 2 - 1)[:, :, None].numpy()
        (expected,) = session.run(None, {"frame": frames.astype(np.float32)})
        actual = extractor.logits(x) / SCALE + THRESHOLD
        np.testing.assert_allclose(actual.numpy(), expected, rtol=0, atol=1e-4)


def test_gradients_flow(path):
    x = images(1, 3, 32, 32).requires_grad_()
    RivaganExtractor.load().loss(x, torch.zeros(32, dtype=torch.int64)).sum().backward()
    assert x.grad.abs().sum() > 0


def test_converts_to_safetensors(path, tmp_path):
    convert("rivagan", tmp_path / "rivagan.safetensors")
    x = images(1, 3, 32, 32)
    torch.testing.assert_close(
        load_extractor(tmp_path / "rivagan.safetensors").logits(x), load_extractor("rivagan").logits(x)
    )


def test_damaged_onnx_files(path, tmp_path):
    data = path.read_bytes()
    broken = tmp_path / "broken.onnx"
    for content in (data[: len(data) // 2], data[:1000], b"\xff" * 64, b"text, not ONNX at all"):
        broken.write_bytes(content)
        with pytest.raises(ExtractorError, match=r"broken\.onnx"):
            RivaganExtractor.load(broken)
    with pytest.raises(ExtractorError, match="No such file"):
        onnx_tensors(tmp_path / "none.onnx")


def test_other_weights_are_not_taken_for_it():
    with pytest.raises(ExtractorError, match="not RivaGAN's decoder"):
        RivaganExtractor({"a": torch.zeros(1)})


def field(number, data):
    assert len(data) < 128
    return bytes([number << 3 | 2, len(data)]) + data


@pytest.mark.parametrize(
    "tensor",
    [
        b"\x40\xff\xff\xff\xff\xff\xff\xff\x7f",  # a name that is a number: so many zero bytes, if taken at its word
        b"\x48\xff\xff\xff\xff\xff\xff\xff\x7f",  # and data
        b"\x10\x01\x08\xff\xff\xff\xff\xff\xff\xff\x7f",  # a dimension of 2^63
        b"\x10\x01\x08\x05" + field(9, b"abc"),  # no whole number of floats
    ],
)
def test_numbers_in_place_of_data(tmp_path, tensor):
    (tmp_path / "bad.onnx").write_bytes(field(7, field(5, tensor)))
    with pytest.raises(ExtractorError, match="not an ONNX file"):
        onnx_tensors(tmp_path / "bad.onnx")


def test_negative_variance(path):
    state = onnx_tensors(path)
    state["_conv.2.running_var"] = -state["_conv.2.running_var"]
    with pytest.raises(ExtractorError, match="negative"):
        RivaganExtractor(state)
