"""Readings of decoders without a sync pattern: presence by the message alone, match by the binomial distribution."""

import math

import pytest
import torch
from scipy import stats
from torch import nn

from onrw_core.extractors.base import Extractor, ExtractorError
from onrw_core.extractors.reading import Pose, Reading, match_log10_p, message_log10_p
from onrw_core.payload.keys import Key
from onrw_core.payload.message import Decoded, decode, encode_id, encode_text, false_accept, raw

KEY = Key(bytes(range(32)))


class Painted(Extractor):
    """Bits as the means of k columns of the picture."""

    name = "painted"

    def __init__(self, num_bits):
        self.num_bits = num_bits

    def logits(self, images, geometry=None):
        return nn.functional.adaptive_avg_pool2d(images.mean(1, keepdim=True), (1, self.num_bits))[:, 0, 0] - 0.5


def painted(bits):
    return bits.float().repeat_interleave(2).expand(3, 8, -1)


def test_match_is_binomial():
    bits = torch.zeros(48, dtype=torch.long)
    other = bits.clone()
    other[:7] = 1
    assert match_log10_p(bits, other) == pytest.approx(math.log10(stats.binom.sf(40, 48, 0.5)))
    assert match_log10_p(bits, bits) == pytest.approx(-48 * math.log10(2))
    # The thresholds of 48 bits: 36 at 1e-3, 41 at 1e-6.
    for equal, rate in ((36, 1e-3), (41, 1e-6)):
        for agreeing, below in ((equal, True), (equal - 1, False)):
            read = (torch.arange(48) >= agreeing).long()
            assert (match_log10_p(read, bits) <= math.log10(rate)) is below
    with pytest.raises(ValueError, match="expected"):
        match_log10_p(bits, bits[:32])


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
        log10_p = Painted(32).read(values, KEY).log10_p
        for limit in counts:
            counts[limit] += log10_p <= limit
    assert counts[-3.0] <= n * 1e-3 + 3 * (n * 1e-3) ** 0.5 and counts[-2.0] <= n * 1e-2


def test_messages_and_nothing():
    for message, size in ((encode_id("c0ffee", KEY), 48), (encode_text("Ann 5", KEY), 64)):
        reading = Painted(size).read(painted(message.bits), KEY)
        assert reading.detected and reading.message.value == message.value and reading.log10_p < -6
        wrong = Painted(size).read(painted(message.bits), Key(bytes(32)))
        assert not wrong.detected and wrong.message.value is None and torch.equal(wrong.bits, message.bits)
        assert Painted(size).read(painted(message.bits), None).message.value is None
    # 32 bits say too little for 1e-6, and so nothing is said.
    short = encode_id("beef", KEY, 32)
    reading = Painted(32).read(painted(short.bits), KEY)
    assert not reading.detected and reading.message.value is None and -6 < reading.log10_p < -4
    assert Painted(32).read(painted(short.bits), KEY, fpr=1e-4).message.id == "beef"


def test_a_decoder_reads_its_own_number_of_bits_only():
    extractor = Painted(48)
    assert extractor.for_bits(48) is extractor
    with pytest.raises(ExtractorError, match="64 bits: the extractor 'painted' reads 48"):
        extractor.for_bits(64)


def test_agreement_with_a_given_message():
    expected = encode_id("c0ffee", KEY).bits
    received = painted(torch.cat([1 - expected[:12], expected[12:]]))
    reading = Painted(48).read(received, KEY)
    match = reading.match(expected)
    assert match.bit_accuracy == 0.75 and match.log10_p == match_log10_p(reading.bits, expected)
    assert reading.match(expected[:32]) is None


def test_what_carries_a_message():
    key = Key(bytes(32))
    meant, bits = encode_id("c0ffee", key), raw("01" * 24)

    def reading(logits, detected, pose=None):
        return Reading(detected, -9.0, logits, decode(logits, key) if detected else Decoded(), 0.0, pose=pose)

    right = meant.bits * 2.0 - 1
    one_wrong = right.clone()
    one_wrong[5] *= -1
    pose = Pose(0.0, 1.0, (0.0, 0.0), False)
    assert reading(right, True).carries(meant) and reading(one_wrong, True).carries(meant)  # corrected
    assert not reading(right, True).carries(encode_id("c0ffef", key))
    assert not reading(right, False, pose).carries(meant)  # the keyed extractor says that there is no mark
    assert reading(right, False).carries(meant)
    assert reading(bits.bits * 2.0 - 1, True, pose).carries(bits)
    assert not reading(one_wrong, True, pose).carries(raw("".join(map(str, meant.bits.tolist()))))
    assert not reading(torch.ones(32), True).carries(meant)
