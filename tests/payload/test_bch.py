"""BCH codes: the algebra that defines them, and soft decoding near the best possible."""

import numpy as np
import pytest

from onrw_core.payload.bch import BCH, PRIMITIVE, _generator

CODES = [BCH(32, 6, 1), BCH(48, 6, 2), BCH(64, 7, 2), BCH(96, 7, 3), BCH(128, 8, 4)]


def divide(dividend: int, divisor: int) -> int:
    while dividend.bit_length() >= divisor.bit_length():
        dividend ^= divisor << (dividend.bit_length() - divisor.bit_length())
    return dividend


def test_textbook_generators():
    # Lin & Costello, table 6.4 and appendix C.
    assert _generator(5, 2) == 0o3551
    assert _generator(6, 2) == 0o12471
    assert _generator(6, 3) == 0o1701317
    assert _generator(7, 2) == 0o41567
    assert _generator(7, 3) == 0o11554743


@pytest.mark.parametrize("code", CODES, ids=str)
def test_generator_divides_and_codewords_are_multiples(code):
    generator = _generator(code.m, code.t)
    assert divide((1 << (2**code.m - 1)) ^ 1, generator) == 0
    assert code.parity <= code.m * code.t and code.information + code.parity == code.length
    rng = np.random.default_rng(0)
    for _ in range(20):
        information = rng.integers(0, 2, code.information, dtype=np.uint8)
        word = code.encode(information)
        assert (word[: code.information] == information).all()
        assert divide(int("".join(map(str, word)), 2), generator) == 0


def test_minimum_distance_by_brute_force():
    code = BCH(16, 5, 2)
    information = (np.arange(1, 2**code.information)[:, None] >> np.arange(code.information) & 1).astype(np.uint8)
    assert min(code.encode(row).sum() for row in information) >= 5


@pytest.mark.parametrize("code", CODES[:3], ids=str)
def test_corrects_any_t_hard_errors(code):
    rng = np.random.default_rng(1)
    for _ in range(40):
        word = code.encode(rng.integers(0, 2, code.information, dtype=np.uint8))
        hard = word.copy()
        hard[rng.choice(code.length, code.t, replace=False)] ^= 1
        assert (code.candidates(2.0 * hard - 1, 1)[0] == word).all()


@pytest.mark.parametrize(("code", "least"), list(zip(CODES, (0.6, 0.85, 0.85, 0.85, 0.9), strict=True)), ids=str)
def test_soft_decoding_of_noisy_bits(code, least):
    """Gaussian noise that makes 5 % of the bits wrong: far beyond what t alone would correct."""
    rng, noise, trials = np.random.default_rng(2), 1 / 1.645, 60
    right = 0
    for _ in range(trials):
        word = code.encode(rng.integers(0, 2, code.information, dtype=np.uint8))
        found = code.candidates(2.0 * word - 1 + noise * rng.standard_normal(code.length), 16)
        assert len(np.unique(found, axis=0)) == len(found) == 16
        right += (found == word).all(1).any()
    assert right / trials >= least


def test_candidates_are_ranked_by_likelihood():
    code, rng = CODES[1], np.random.default_rng(3)
    soft = rng.standard_normal(code.length)
    cost = ((code.candidates(soft, 8) != (soft > 0)) * np.abs(soft)).sum(1)
    assert (np.diff(cost) >= 0).all()


@pytest.mark.parametrize(("length", "m", "t"), [(64, 6, 1), (32, 9, 1), (10, 5, 2)])
def test_impossible_codes(length, m, t):
    with pytest.raises(ValueError, match="no BCH code"):
        BCH(length, m, t)


def test_all_fields_are_primitive():
    for m, polynomial in PRIMITIVE.items():
        assert _generator(m, 1) == polynomial
