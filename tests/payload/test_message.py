"""Messages: wire format 1 pinned, round trips, and never a garbled message."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onrw_core.payload.keys import Key
from onrw_core.payload.message import (
    SIZES,
    TEXT_SIZES,
    Decoded,
    capacity,
    decode,
    encode_id,
    encode_text,
    false_accept,
    random_id,
    raw,
)

KEY = Key(bytes(range(32)))
OTHER = Key(b"another key of some length......")

# Wire format 1, the raw bits in hexadecimal. Marks must stay readable for years: these strings never change.
GOLDEN = [
    ("id", "beef", 32, "117f2ec6"),
    ("id", "c0ffee", 48, "780dcb0d2733"),
    ("id", "000c0ffee", 64, "6c35d1e68ad35371"),
    ("text", "Ann 5", 64, "ccd80e9898076ee3"),
    ("text", "Åsa", 64, "1cd78ec1738f075e"),
    (
        "text",
        "© Mül",
        96,
        "eac837a14fc70f5cde87cafb",
    ),
    (
        "text",
        "ONRW 2026!",
        128,
        "4fdfe64f9703fe4871abcf7b0dfafcc2",
    ),
]


def bits_of(hexadecimal: str) -> torch.Tensor:
    return torch.tensor([int(bit) for digit in hexadecimal for bit in f"{int(digit, 16):04b}"])


def noisy(bits: torch.Tensor, wrong: float, generator: torch.Generator) -> torch.Tensor:
    """Logits of which a fraction `wrong` has the wrong sign on average."""
    sigma = 1 / torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(1 - wrong))
    return bits * 2.0 - 1 + sigma * torch.randn(len(bits), generator=generator)


@pytest.mark.parametrize(("kind", "value", "num_bits", "expected"), GOLDEN)
def test_wire_format_1(kind, value, num_bits, expected):
    encode = encode_text if kind == "text" else encode_id
    message = encode(value, KEY, num_bits)
    assert torch.equal(message.bits, bits_of(expected))
    assert message.bits.dtype == torch.int64 and message.kind == kind and message.value == value
    assert decode(bits_of(expected), KEY) == Decoded(kind, value, 1, 0)


def test_later_version_is_recognised_and_not_read():
    assert decode(bits_of("883230868be5"), KEY) == Decoded(None, None, 2, 0)


@pytest.mark.parametrize("num_bits", SIZES)
def test_ids_round_trip_at_every_size(num_bits):
    generator = torch.Generator().manual_seed(num_bits)
    for _ in range(20):
        message = random_id(KEY, generator, num_bits)
        assert len(message.value) == capacity(num_bits).id_digits
        for values in (message.bits, message.bits * 2.0 - 1):
            read = decode(values, KEY)
            assert (read.kind, read.id, read.text, read.corrected) == ("id", message.value, None, 0)


@pytest.mark.parametrize("num_bits", TEXT_SIZES)
def test_text_of_full_capacity(num_bits):
    room = capacity(num_bits)
    for text in ("~" * room.ascii_characters, "x", "é" * (room.utf8_bytes // 2)):
        message = encode_text(text, KEY, num_bits)
        assert decode(message.bits, KEY).text == text
    with pytest.raises(ValueError, match=f"{room.ascii_characters} ASCII characters or {room.utf8_bytes} bytes"):
        encode_text("~" * (room.ascii_characters + 1), KEY, num_bits)


def test_smallest_size_is_chosen():
    assert len(encode_text("12345", KEY).bits) == 64
    assert len(encode_text("123456", KEY).bits) == 96
    assert len(encode_text("ö234567", KEY).bits) == 128
    assert len(encode_id("abcdef", KEY).bits) == 48
    assert len(encode_id("1abcdef", KEY).bits) == 64
    assert len(encode_id("f" * 18, KEY).bits) == 128


def test_ids_are_normalised():
    assert encode_id(" 0xC0FFEE ", KEY).value == "c0ffee"
    assert encode_id("ab", KEY).value == "0000ab"
    assert torch.equal(encode_id("00000000ab", KEY, 48).bits, encode_id("AB", KEY, 48).bits)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: encode_text("a text that is far too long to fit", KEY), "10 ASCII characters or 9 bytes"),
        (lambda: encode_text("€" * 4, KEY), "12 bytes as UTF-8"),
        (lambda: encode_text("", KEY), "printable"),
        (lambda: encode_text("a\nb", KEY), "printable"),
        (lambda: encode_text("nul\0", KEY), "printable"),
        (lambda: encode_text("abc", KEY, 48), "ids only"),
        (lambda: encode_id("xyz", KEY), "not hexadecimal"),
        (lambda: encode_id("", KEY), "not hexadecimal"),
        (lambda: encode_id("f" * 19, KEY), "hold 18"),
        (lambda: encode_id("1000000", KEY, 48), "48 bits hold 6"),
        (lambda: encode_id("ab", KEY, 50), "32, 48, 64, 96, 128"),
        (lambda: capacity(0), "messages have"),
        (lambda: raw("0120"), "string of 0 and 1"),
        (lambda: raw(""), "string of 0 and 1"),
        (lambda: raw("0" * 129), "1 to 128"),
        (lambda: raw(torch.tensor([0, 2])), "vector of 0 and 1"),
        (lambda: raw(torch.zeros(2, 2)), "vector of 0 and 1"),
    ],
)
def test_errors_say_what_fits(call, reason):
    with pytest.raises(ValueError, match=reason):
        call()


def test_raw_bits_pass_through():
    message = raw("0110")
    assert message.kind == "raw" and message.bits.tolist() == [0, 1, 1, 0] and message.value == "0110"
    assert raw(torch.tensor([1.0, 0.0])).value == "10"


@pytest.mark.parametrize(("num_bits", "least"), [(48, 0.85), (64, 0.85), (96, 0.9), (128, 0.9)])
def test_soft_decisions_correct_four_percent_of_errors(num_bits, least):
    generator, trials = torch.Generator().manual_seed(0), 60
    right = 0
    for _ in range(trials):
        message = random_id(KEY, generator, num_bits)
        read = decode(noisy(message.bits, 0.04, generator), KEY)
        assert read.value in (message.value, None)
        right += read.value == message.value
    assert right / trials >= least


def test_reliabilities_help():
    """Three wrong bits, all doubtful: soft decisions repair what hard ones cannot."""
    message = encode_id("c0ffee", KEY)
    logits = message.bits * 2.0 - 1
    logits[[3, 20, 41]] *= -0.1
    read = decode(logits, KEY)
    assert read.id == "c0ffee" and read.corrected == 3
    assert decode((logits > 0).long(), KEY).id != "c0ffee"


@pytest.mark.parametrize("num_bits", [48, 64])
def test_wrong_keys_and_noise_read_nothing(num_bits):
    """The false accepts stay near their stated probability."""
    generator, trials = torch.Generator().manual_seed(1), 600
    message = random_id(KEY, generator, num_bits)
    assert decode(message.bits, OTHER) == Decoded()
    accepted = sum(decode(torch.randn(num_bits, generator=generator), KEY).version is not None for _ in range(trials))
    expected = trials * false_accept(num_bits)
    assert accepted <= expected + 4 * expected**0.5 + 1


def test_false_accept_probability_is_met():
    """At 32 bits it is large enough to be measured."""
    generator, trials = torch.Generator().manual_seed(2), 2500
    accepted = sum(decode(torch.randn(32, generator=generator), KEY).kind is not None for _ in range(trials))
    assert 0.3 * trials * false_accept(32) <= accepted <= 2.5 * trials * false_accept(32)


def test_whitening_hides_what_the_bits_say():
    """The same id under many keys: every raw bit is one about half of the time."""
    bits = torch.stack([encode_id("000000", Key(bytes([i]) * 32)).bits for i in range(200)]).double()
    assert (bits.mean(0) - 0.5).abs().max() < 0.2


@pytest.mark.parametrize(
    "values", [torch.zeros(48), torch.full((48,), float("nan")), torch.randn(50), torch.randn(0), torch.randn(1, 48)]
)
def test_unusable_values_hold_no_message(values):
    assert decode(values, KEY) == Decoded()


def test_random_ids_differ_without_a_generator():
    assert random_id(KEY).value != random_id(KEY).value


@pytest.mark.parametrize(
    "values",
    [torch.tensor(1.0), torch.tensor(1), torch.zeros(0), torch.zeros(1, 48), torch.zeros(47)],
    ids=lambda v: str(tuple(v.shape)),
)
def test_values_that_are_no_message(values):
    assert decode(values, KEY) == Decoded()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scale", [1e-300, 1e300, torch.inf])
def test_scale_of_the_logits_does_not_count(scale):
    message = encode_id("c0ffee", KEY)
    assert decode((message.bits * 2.0 - 1).double() * scale, KEY).id == "c0ffee"


@pytest.mark.parametrize("values", [[0.5], [1.2], [torch.nan], [-1], [2]])
def test_raw_bits_are_not_rounded(values):
    with pytest.raises(ValueError, match="0 and 1"):
        raw(torch.tensor(values))


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=12))
def test_any_text_comes_back_or_is_refused(text):
    for encode in (encode_text, encode_id):
        try:
            message = encode(text, KEY)
        except ValueError:
            continue
        assert decode(message.bits, KEY).value == message.value


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(width=32), max_size=130))
def test_any_logits_are_read(values):
    assert isinstance(decode(torch.tensor(values), KEY), Decoded)
    assert isinstance(decode(torch.tensor(values * 128)[:128], KEY), Decoded)
