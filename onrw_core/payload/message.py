"""Messages: ids and short texts as bits, with error correction and a keyed check. Wire format 1.

A message of n raw bits is, in this order (docs/message.md has the table)

    header (2) | payload | check | parity

- header: 0 = id, 1 = text in UTF-8, 2 = text in 7-bit ASCII, 3 = a later version of this format;
- check: the first bits of HMAC-SHA256, under a derived key, over n, header and payload;
- parity: of a BCH code (`ecc`), over all before it;

and all bits are XORed with a key stream (whitening), so that without the key the bits of any message look random. The
reader ranks likely codewords by the logits and takes the first that passes the check. The logits of a wrong key or of
an unmarked image pass it with the probability `false_accept(n)`, over all candidates together; only then is a wrong
message returned. In all other cases there is no message, never a partly wrong message.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..arguments import as_whole, check_type
from ..imaging.pixels import check_tensor
from .bch import BCH
from .keys import Key, check_key, excerpt

__all__ = [
    "ID_BITS",
    "SIZES",
    "TEXT_SIZES",
    "VERSION",
    "Capacity",
    "Decoded",
    "Message",
    "as_bits",
    "bit_string",
    "capacity",
    "decode",
    "encode_id",
    "encode_text",
    "false_accept",
    "photo_id",
    "random_id",
    "raw",
]

VERSION = 1
HEADER_BITS = 2
ID, UTF8, ASCII, LATER = range(4)
ID_BITS = 48  # default raw bits of an id


@dataclass(frozen=True)
class Format:
    """Layout of the raw bits, and the number of candidates that the reader checks.

    Ids and texts use all bits but header, check and parity. 32 and 48 bits carry ids alone; a text header there counts
    as a failed check.
    """

    code: BCH
    check: int
    candidates: int
    texts: bool

    @property
    def payload(self) -> int:
        return self.code.information - HEADER_BITS - self.check


FORMATS = {
    32: Format(BCH(32, 6, 1), check=8, candidates=1, texts=False),
    48: Format(BCH(48, 6, 2), check=10, candidates=2, texts=False),
    64: Format(BCH(64, 7, 2), check=12, candidates=2, texts=True),
    96: Format(BCH(96, 7, 3), check=17, candidates=16, texts=True),
    128: Format(BCH(128, 8, 4), check=22, candidates=32, texts=True),
}
SIZES = tuple(FORMATS)
TEXT_SIZES = tuple(size for size, layout in FORMATS.items() if layout.texts)
LARGEST = SIZES[-1]
LARGEST_LOGIT = 1e100  # logits are clamped to this size, so that sums do not overflow


@dataclass(frozen=True)
class Capacity:
    """Capacity of a number of raw bits.

    Attributes:
        num_bits: Raw bits.
        payload: Bits of the message itself.
        id_digits: Hexadecimal digits of an id.
        utf8_bytes: Bytes of a UTF-8 text; 0 where texts are not supported.
        ascii_characters: Characters of a pure ASCII text; 0 where texts are not supported.
    """

    num_bits: int
    payload: int
    id_digits: int
    utf8_bytes: int
    ascii_characters: int


@dataclass(frozen=True)
class Message:
    """An encoded message.

    Attributes:
        kind: "text", "id" or "raw".
        bits: (k,) int64 of 0/1, as the extractor carries them.
        value: The text, the id in lower-case hexadecimal at full width, or the bits as a 0/1 string.
    """

    kind: str
    bits: Tensor
    value: str


@dataclass(frozen=True)
class Decoded:
    """The message that the bits of a reading decode to.

    Attributes:
        kind: "text" or "id"; None where there is no message.
        value: The text or the id (lower-case hexadecimal, full width); None where there is no message.
        version: `VERSION` with a message; `VERSION` + 1 for a message of a later version of this format, which cannot
            be read; None where no message was recognised.
        corrected: Number of corrected bit errors; None where no message was recognised.
    """

    kind: str | None = None
    value: str | None = None
    version: int | None = None
    corrected: int | None = None

    @property
    def text(self) -> str | None:
        return self.value if self.kind == "text" else None

    @property
    def id(self) -> str | None:
        return self.value if self.kind == "id" else None


def capacity(num_bits: int) -> Capacity:
    """The capacity of `num_bits` raw bits.

    Raises:
        ValueError: There is no format of that many bits.
    """
    layout = _format(num_bits)
    return Capacity(
        num_bits,
        layout.payload,
        layout.payload // 4,
        layout.payload // 8 if layout.texts else 0,
        layout.payload // 7 if layout.texts else 0,
    )


def false_accept(num_bits: int) -> float:
    """The probability that random logits pass the check: valid headers x candidates / 2^(header + check)."""
    layout = _format(num_bits)
    headers = 3 if layout.texts else 1
    return headers * layout.candidates * 2.0 ** -(HEADER_BITS + layout.check)


def encode_text(text: str, key: Key, num_bits: int | None = None) -> Message:
    """Encode a short text.

    Args:
        text: Printable characters. ASCII takes 7 bits a character, else UTF-8 is used.
        key: Key of the watermark.
        num_bits: 64, 96 or 128; None for the smallest size that the text fits.

    Raises:
        ValueError: The text is empty, not printable or too long; the error states the capacity.
    """
    check_type("text", text, str)
    check_key(key)
    if not text or not text.isprintable():
        raise ValueError(f"text {excerpt(text)}: must be one or more printable characters in one line")
    sizes = TEXT_SIZES if num_bits is None else (num_bits,)
    if num_bits is not None and not _format(num_bits).texts:
        raise ValueError(f"text {excerpt(text)}: {num_bits} bits carry ids only; use 64, 96 or 128 bits for a text")
    utf8 = text.encode("utf-8", errors="strict")
    for size in sizes:
        room = capacity(size)
        if text.isascii() and len(text) <= room.ascii_characters:
            return Message("text", _encode(ASCII, _pack(utf8, 7, room.payload), key, size), text)
        if len(utf8) <= room.utf8_bytes:
            return Message("text", _encode(UTF8, _pack(utf8, 8, room.payload), key, size), text)
    raise ValueError(
        f"text {excerpt(text)}: too long, {len(text)} characters or {len(utf8)} bytes as UTF-8; {room.num_bits} bits "
        f"hold {room.ascii_characters} ASCII characters or {room.utf8_bytes} bytes of UTF-8; shorten it, or embed an "
        "id and store the text in a registry"
    )


def encode_id(value: str, key: Key, num_bits: int | None = None) -> Message:
    """Encode a hexadecimal id; shorter ids are padded with zeros on the left.

    Args:
        value: Hexadecimal digits, either case, "0x" allowed.
        key: Key of the watermark.
        num_bits: Raw bits; None for the smallest size, from 48 on, that the id fits.

    Raises:
        ValueError: `value` is not hexadecimal or does not fit.
    """
    check_type("id", value, str)
    check_key(key)
    digits = value.strip().lower().removeprefix("0x")
    if not digits or not set(digits) <= set("0123456789abcdef"):
        raise ValueError(f"id {excerpt(value)}: not hexadecimal; use the digits 0-9 and a-f, e.g. c0ffee")
    sizes = [size for size in SIZES if size >= ID_BITS] if num_bits is None else [num_bits]
    number = int(digits, 16)
    for size in sizes:
        room = capacity(size)
        if number < 16**room.id_digits:
            bits = [number >> i & 1 for i in range(room.payload - 1, -1, -1)]
            return Message("id", _encode(ID, np.array(bits, np.uint8), key, size), f"{number:0{room.id_digits}x}")
    raise ValueError(
        f"id {excerpt(value)}: too long, {len(digits)} hexadecimal digits; {room.num_bits} bits hold {room.id_digits}"
    )


def random_id(key: Key, generator: torch.Generator | None = None, num_bits: int = ID_BITS) -> Message:
    """Encode a random id, drawn from `generator`, or by the operating system if it is None."""
    digits = capacity(num_bits).id_digits
    check_type("generator", generator, torch.Generator | None)
    if generator is None:
        value = secrets.token_hex(digits)[:digits]
    else:
        value = "".join(f"{digit:x}" for digit in torch.randint(16, (digits,), generator=generator).tolist())
    return encode_id(value, key, num_bits)


def photo_id(key: Key, photo: str, num_bits: int = ID_BITS) -> Message:
    """Encode an id derived from key and photo: reproducible with the key, and random to everyone without it.

    Args:
        key: Key of the watermark.
        photo: Identifier of the photo, such as its digest.
        num_bits: Raw bits.
    """
    check_key(key)
    check_type("photo", photo, str)
    digits = capacity(num_bits).id_digits
    return encode_id(key.stream(f"message/photo id {photo}", digits).hex()[:digits], key, num_bits)


def raw(bits: str | Tensor) -> Message:
    """Raw bits: no schema, no error correction, no check, no whitening.

    Args:
        bits: A string of 0 and 1, or a (k,) tensor of them.

    Raises:
        ValueError: Values other than 0 and 1, or an unsupported number of bits.
    """
    check_type("bits", bits, str | Tensor)
    if isinstance(bits, str):
        if not bits or not set(bits) <= {"0", "1"}:
            raise ValueError(f"bits {excerpt(bits)}: write them as a string of 0 and 1")
        bits = torch.tensor([int(bit) for bit in bits])
    bits = as_bits(bits)
    if not 1 <= len(bits) <= LARGEST:
        raise ValueError(f"{len(bits)} bits: a watermark carries 1 to {LARGEST}")
    return Message("raw", bits, bit_string(bits))


def as_bits(bits: Tensor, name: str = "bits") -> Tensor:
    """Bits as int64 on the CPU.

    Args:
        bits: (k,) of 0/1, of any type.
        name: Name of the argument in errors.

    Raises:
        ValueError: No such tensor.
    """
    check_tensor(bits, name)
    bits = bits.detach().cpu()
    if bits.ndim != 1 or not ((bits == 0) | (bits == 1)).all():
        raise ValueError(f"{name} of shape {tuple(bits.shape)}: a vector of 0 and 1 is needed")
    return bits.real.to(torch.int64)


def bit_string(bits: Tensor | np.ndarray) -> str:
    """Bits (k,) of 0/1 as a string of 0 and 1."""
    bits = bits if isinstance(bits, np.ndarray) else as_bits(bits)
    return "".join(map(str, bits.tolist()))


def decode(values: Tensor, key: Key) -> Decoded:
    """Decode a message.

    Args:
        values: (k,) logits (floating, positive = 1) or hard bits (integer 0/1), as the extractor gives them. Logits
            correct more errors. Any k is allowed; only those of `SIZES` carry a message.
        key: Key of the watermark.

    Returns:
        The message; `kind` is None where the check fails.

    Raises:
        ValueError: `values` are no real tensor, or `key` is no key.
    """
    check_tensor(values, "values")
    if values.is_complex():
        raise ValueError(f"values: are of type {values.dtype}; give floating logits or integer bits")
    check_key(key)
    values = values.detach().cpu()
    if values.ndim != 1 or len(values) not in FORMATS:
        return Decoded()
    num_bits, layout = len(values), FORMATS[len(values)]
    soft = (values.double() if values.is_floating_point() else values.double() * 2 - 1).nan_to_num()
    soft = soft.clamp(-LARGEST_LOGIT, LARGEST_LOGIT)
    unwhitened = soft.numpy() * (1 - 2.0 * _whitening(key, num_bits))
    for word in layout.code.candidates(unwhitened, layout.candidates):
        content, check = word[: HEADER_BITS + layout.payload], word[HEADER_BITS + layout.payload :][: layout.check]
        if not np.array_equal(check, _check(content, key, num_bits)):
            continue
        read = _read(content, layout)
        if read is not None:
            return replace(read, corrected=int(((unwhitened > 0) != word).sum()))
    return Decoded()


def _read(content: np.ndarray, layout: Format) -> Decoded | None:
    """The message of header and payload bits; None where they are not a message of this version."""
    header, payload = 2 * int(content[0]) + int(content[1]), content[HEADER_BITS:]
    if header == LATER:
        return Decoded(version=VERSION + 1)
    value = _read_id(payload) if header == ID else _read_text(payload, 7 if header == ASCII else 8)
    if value is None or (header != ID and not layout.texts):
        return None
    return Decoded("id" if header == ID else "text", value, VERSION)


def _format(num_bits: int) -> Format:
    num_bits = as_whole("num_bits", num_bits, 0)
    if num_bits not in FORMATS:
        sizes = ", ".join(map(str, SIZES))
        raise ValueError(f"{num_bits} bits: messages have {sizes} bits; other sizes carry raw bits only")
    return FORMATS[num_bits]


def _encode(header: int, payload: np.ndarray, key: Key, num_bits: int) -> Tensor:
    content = np.concatenate([np.array([header >> 1, header & 1], np.uint8), payload])
    word = FORMATS[num_bits].code.encode(np.concatenate([content, _check(content, key, num_bits)]))
    return torch.from_numpy((word ^ _whitening(key, num_bits)).astype(np.int64))


def _check(content: np.ndarray, key: Key, num_bits: int) -> np.ndarray:
    """The truncated HMAC of header and payload bits."""
    data = bytes([num_bits]) + np.packbits(content).tobytes()
    digest = hmac.digest(key.stream("message/check", 32), data, hashlib.sha256)
    return np.unpackbits(np.frombuffer(digest, np.uint8))[: FORMATS[num_bits].check]


def _whitening(key: Key, num_bits: int) -> np.ndarray:
    """The key stream that is XORed onto the raw bits, a different one for each length."""
    stream = key.stream(f"message/whitening/{num_bits}", (num_bits + 7) // 8)
    return np.unpackbits(np.frombuffer(stream, np.uint8))[:num_bits]


def _pack(data: bytes, width: int, payload: int) -> np.ndarray:
    """Each byte's low `width` bits, first bit first, then zeros."""
    bits = np.unpackbits(np.frombuffer(data, np.uint8)[:, None], axis=1)[:, 8 - width :].reshape(-1)
    return np.concatenate([bits, np.zeros(payload - len(bits), np.uint8)])


def _read_text(payload: np.ndarray, width: int) -> str | None:
    """The inverse of `_pack`; None unless it is text that `encode_text` could have written."""
    whole = len(payload) // width * width
    characters = np.zeros((whole // width, 8), np.uint8)
    characters[:, 8 - width :] = payload[:whole].reshape(-1, width)
    data = np.packbits(characters).tobytes().rstrip(b"\0")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return text if text and text.isprintable() and not payload[whole:].any() else None


def _read_id(payload: np.ndarray) -> str | None:
    digits = len(payload) // 4
    number = int(bit_string(payload), 2)
    return f"{number:0{digits}x}" if number < 16**digits else None
