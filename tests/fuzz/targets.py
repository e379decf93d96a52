"""What is fuzzed: every parser that takes bytes from outside, as a function of those bytes.

A target returns where the input is read or refused with the error that its docstring names; anything else that it
raises is a finding. `fuzz` runs them with a coverage-guided fuzzer, `test_corpus` with every input kept in ``corpus/``.
"""

from __future__ import annotations

import atexit
import io
import math
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from onrw_core.commands.journal import JOURNAL, Journal
from onrw_core.diffusion.model import Conditioning
from onrw_core.extractors.base import ExtractorError
from onrw_core.extractors.loading import load_extractor
from onrw_core.imaging import files as images
from onrw_core.payload import message
from onrw_core.payload.keys import Key, KeyFileError
from onrw_core.payload.registry import Entry, Registry, RegistryError
from onrw_core.stages.inversion_record import Inversion

__all__ = ["TARGETS", "seeds"]

KEY = Key(bytes(range(32)))
SHARED_MEMORY = Path("/dev/shm")
FOLDER = Path(tempfile.mkdtemp(prefix="onrw-fuzz-", dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None))

atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)


def _file(name: str, data: bytes) -> Path:
    path = FOLDER / name
    path.write_bytes(data)
    return path


def message_content(data: bytes) -> None:
    """Header and payload of every size, as if their check had been passed; and texts and ids, there and back."""
    bits = np.unpackbits(np.frombuffer(data[1:], np.uint8))
    size = message.SIZES[data[0] % len(message.SIZES)] if data else 48
    layout = message.FORMATS[size]
    content = np.zeros(message.HEADER_BITS + layout.payload, np.uint8)
    content[: len(bits)] = bits[: len(content)]
    read = message._read(content, layout)
    if read is not None and read.kind is not None:
        encode = message.encode_text if read.kind == "text" else message.encode_id
        again = encode(read.value, KEY, size)
        assert again.value == read.value
    text = data.decode("utf-8", errors="surrogateescape")
    for encode in (message.encode_text, message.encode_id):
        try:
            given = encode(text, KEY)
        except ValueError:
            continue
        word = given.bits.numpy().astype(np.uint8) ^ message._whitening(KEY, len(given.bits))
        layout = message.FORMATS[len(given.bits)]
        assert message._read(word[: message.HEADER_BITS + layout.payload], layout).value == given.value


def message_logits(data: bytes) -> None:
    """Any vector of soft or hard bits: no error, and no message whose bits are not near."""
    kind, data = (data[0], data[1:]) if data else (0, b"")
    dtype = (np.float32, np.float16, np.int8, np.float64)[kind % 4]
    values = np.frombuffer(data[: len(data) // np.dtype(dtype).itemsize * np.dtype(dtype).itemsize], dtype)
    size = message.SIZES[kind // 4 % len(message.SIZES)]
    if kind < 128 and len(values):
        values = np.resize(values, size)
    decoded = message.decode(torch.from_numpy(values.copy()), KEY)
    if decoded.kind is not None:
        encode = message.encode_text if decoded.kind == "text" else message.encode_id
        bits = encode(decoded.value, KEY, len(values)).bits.numpy()
        soft = np.nan_to_num(values.astype(np.float64)) - (0 if dtype != np.int8 else 0.5)
        wrong, doubtful = (bits != (soft > 0))[soft != 0].sum(), (soft == 0).sum()
        assert wrong <= decoded.corrected <= wrong + doubtful


def _reason(error: Exception) -> str:
    return str(error).split("fuzz.key", 1)[1]


def _key_reasons() -> set[str]:
    """All that may be said of a key file: whatever is in it, it is not repeated."""
    reasons = set()
    for text in ("", "hello", "onrw-key-1:00", KEY.text()[:-8] + "00000000"):
        try:
            Key.parse(text, "key file fuzz.key")
        except KeyFileError as error:
            reasons.add(_reason(error))
    return reasons


KEY_REASONS = _key_reasons()


def key_file(data: bytes) -> None:
    """KeyFileError, which does not repeat the file."""
    try:
        key = Key.load(_file("fuzz.key", data))
    except KeyFileError as error:
        assert _reason(error) in KEY_REASONS
    else:
        assert Key.parse(key.text()) == key


def journal(data: bytes) -> None:
    """Never an error: what is not understood is marked again."""
    folder = FOLDER / "journal"
    folder.mkdir(exist_ok=True)
    (folder / JOURNAL).write_bytes(data)
    found = Journal(folder, {"--preset": "fast", "--key": "keyed:0"})
    for name in ("a.png", *list(found.entries)[:4]):
        try:
            found.expects(folder / name)
        except ValueError as error:
            assert "other settings" in str(error)


def inversion(data: bytes) -> None:
    """ValueError."""
    path = _file("fuzz.safetensors", data)
    try:
        found = Inversion.load(path)
    except ValueError:
        return
    assert found.steps >= 1 and math.isfinite(found.start_sigma) and math.isfinite(found.guidance)
    assert found.latents.ndim == 5 and isinstance(found.method, str) and isinstance(found.positive.incomplete, bool)
    for i in range(min(found.steps, 4)):
        found.null_at(i)


def _decoder(suffix: str) -> Callable[[bytes], None]:
    def decoder(data: bytes) -> None:
        """ExtractorError."""
        path = _file("decoder" + suffix, data)
        try:
            extractor = load_extractor(path)
        except ExtractorError:
            return
        assert extractor.num_bits >= 1
        with torch.no_grad():
            assert extractor.logits(torch.full((1, 3, 16, 16), 0.5)).shape == (1, extractor.num_bits)

    return decoder


def registry(data: bytes) -> None:
    """RegistryError; what is read are entries, and reading changes nothing."""
    path = _file("fuzz.db", data)
    try:
        found = Registry(path)
        entries = found.entries()
        found.lookup("c0ffee")
        found.similar("0" * 16, 64)
    except RegistryError:
        pass
    else:
        assert all(isinstance(entry, Entry) and isinstance(entry.id, str) for entry in entries)
    assert path.read_bytes() == data
    for left in FOLDER.glob("fuzz.db-*"):
        left.unlink()


def image(data: bytes) -> None:
    """ImageError."""
    try:
        found = images.load("fuzz.png", data)
    except images.ImageError:
        return
    assert found.rgb.shape[0] == 3 and 0 <= found.rgb.min() and found.rgb.max() <= 1
    try:
        images.encode("again.png", found.rgb, found)
    except images.ImageError:
        pass


TARGETS: dict[str, Callable[[bytes], None]] = {
    "message": message_content,
    "logits": message_logits,
    "key": key_file,
    "journal": journal,
    "inversion": inversion,
    "safetensors": _decoder(".safetensors"),
    "onnx": _decoder(".onnx"),
    "pickle": _decoder(".pth"),
    "registry": registry,
    "image": image,
}


def seeds(target: str) -> Iterator[bytes]:
    """Valid inputs to begin with."""
    yield from {
        "message": _messages,
        "logits": _logits,
        "key": _keys,
        "journal": _journals,
        "inversion": _inversions,
        "safetensors": lambda: [save(_hidden(), metadata=m) for m in (None, {"architecture": "hidden"})],
        "onnx": lambda: [_onnx()],
        "pickle": _pickles,
        "registry": _registries,
        "image": _images,
    }[target]()


def _messages() -> Iterator[bytes]:
    yield from (b"Ann 5", "Åsa".encode(), b"c0ffee", b"0xBEEF", b"\x02" + bytes(6), b"\x04\x80" + b"ONRW 2026!")


def _logits() -> Iterator[bytes]:
    for index, (size, given) in enumerate(
        (len(m.bits), m)
        for m in (
            message.encode_id("beef", KEY, 32),
            message.encode_id("c0ffee", KEY),
            message.encode_text("Ann 5", KEY),
            message.encode_text("© Mül", KEY),
            message.encode_text("ONRW 2026!", KEY),
        )
    ):
        assert message.SIZES[index] == size
        yield bytes([4 * index]) + (given.bits.numpy() * 2.0 - 1).astype(np.float32).tobytes()
        yield bytes([4 * index + 2]) + given.bits.numpy().astype(np.int8).tobytes()


def _keys() -> Iterator[bytes]:
    text = KEY.text() + "\n"
    yield from (text.encode(), text.encode("utf-8-sig"), text.encode("utf-16"), text.upper().encode(), b"")


def _journals() -> Iterator[bytes]:
    folder = FOLDER / "seeds"
    folder.mkdir(exist_ok=True)
    (folder / JOURNAL).unlink(missing_ok=True)
    Journal(folder, {"--preset": "fast", "--target-psnr": 42.0}).note(folder / "a.png", b"a", "0" * 64)
    Journal(folder, {"--preset": "paper", "--key": "keyed:1"}).note(folder / "b.png", b"b", "1" * 64)
    content = (folder / JOURNAL).read_bytes()
    yield from (content, content[:-20])


def _inversions() -> Iterator[bytes]:
    prompt = Conditioning(
        torch.zeros(1, 2, 3),
        torch.zeros(1, 2),
        content=(0,),
        word=(1,),
        options={"mask": torch.ones(1, 2, dtype=torch.long), "area": (1, [2.0, None])},
        missing=("control",),
    )
    path = FOLDER / "seed.safetensors"
    for null in (None, torch.zeros(1, 2, 3)):
        record = Inversion(torch.zeros(2, 1, 1, 2, 2), torch.tensor([0.2, 0.0]), null, prompt, prompt)
        record.save(path)
        yield path.read_bytes()


def _hidden() -> dict[str, torch.Tensor]:
    """A HiDDeN decoder of one channel and two bits."""
    norm = {name: torch.ones(1) for name in ("weight", "bias", "running_mean", "running_var")}
    state = {f"layers.0.layers.1.{name}": tensor for name, tensor in norm.items()}
    return state | {
        "layers.0.layers.0.weight": torch.ones(1, 3, 3, 3),
        "linear.weight": torch.ones(2, 1),
        "linear.bias": torch.zeros(2),
    }


def _pickles() -> Iterator[bytes]:
    for state in (_hidden(), {"state_dict": _hidden()}):
        file = io.BytesIO()
        torch.save(state, file)
        yield file.getvalue()
        file = io.BytesIO()
        torch.save(state, file, _use_new_zipfile_serialization=False)
        yield file.getvalue()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("module/code/__torch__.py", "")
    yield file.getvalue()


def _onnx() -> bytes:
    """RivaGAN's decoder with one channel and one bit."""

    def field(number: int, data: bytes) -> bytes:
        return _varint(number << 3 | 2) + _varint(len(data)) + data

    def initializer(name: str, shape: tuple[int, ...]) -> bytes:
        dims = b"".join(b"\x08" + _varint(size) for size in shape)
        raw = np.ones(shape, "<f4").tobytes()
        return field(5, dims + b"\x10\x01" + field(8, name.encode()) + field(9, raw))

    content = b""
    for stack in ("_conv", "_attention"):
        for index, channels in ((0, 3), (3, 1)):
            content += initializer(f"{stack}.{index}.weight", (1, channels, 1, 11, 11))
            content += initializer(f"{stack}.{index}.bias", (1,))
            if index == 0 or stack == "_attention":
                for name in ("weight", "bias", "running_mean", "running_var"):
                    content += initializer(f"{stack}.{index + 2}.{name}", (1,))
    return field(7, content)


def _varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def _registries() -> Iterator[bytes]:
    path = FOLDER / "seed.db"
    path.unlink(missing_ok=True)
    made = Registry.create(path)
    yield path.read_bytes()
    made.add("c0ffee", file_hash="ab", perceptual_hash="0" * 16, note="for Ann", time=1.0)
    made.add("beef", time=2.0)
    yield path.read_bytes()


def _images() -> Iterator[bytes]:
    from PIL import Image, PngImagePlugin

    ramp = Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint32).reshape(64, 64, 3).astype(np.uint8) // 8 * 8)
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "a")
    text.add_itxt("Title", "b", zip=True)
    exif = Image.Exif()
    exif[274], exif[270] = 6, "a"
    for kind, picture, options in (
        ("PNG", ramp, {"pnginfo": text, "exif": exif, "dpi": (72, 72)}),
        ("PNG", ramp.convert("P"), {"transparency": 0}),
        ("PNG", ramp.convert("LA"), {}),
        ("JPEG", ramp, {"exif": exif, "comment": b"a", "quality": 50}),
        ("JPEG", ramp.convert("CMYK"), {"quality": 50}),
        ("WEBP", ramp, {"exif": exif}),
        ("TIFF", ramp, {"compression": "tiff_adobe_deflate", "description": "a"}),
        ("BMP", ramp.convert("P"), {}),
        ("GIF", ramp.convert("P"), {}),
    ):
        file = io.BytesIO()
        picture.save(file, kind, **options)
        yield file.getvalue()
