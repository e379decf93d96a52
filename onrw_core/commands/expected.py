"""--expect-bits and --expect-id: comparison of a reading with expected bits."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from .common import p_value

if TYPE_CHECKING:
    from torch import Tensor

    from ..extractors.base import Extractor
    from ..extractors.reading import Match
    from ..payload.keys import Key

__all__ = ["add_expected", "expected_bits", "fields", "sentence"]


def add_expected(parser: argparse.ArgumentParser) -> None:
    expected = parser.add_mutually_exclusive_group()
    expected.add_argument("--expect-bits", "--expect", metavar="0101...", help="compare with these raw bits")
    expected.add_argument("--expect-id", metavar="HEX", help="compare with this id")


def expected_bits(arguments: argparse.Namespace, key: Key | None, extractor: Extractor) -> Tensor | None:
    """The expected bits, (k,) of 0/1; None if the arguments give none.

    Args:
        arguments: With those of `add_expected`.
        key: Key of the message of an id.
        extractor: The extractor that reads the bits.

    Raises:
        ValueError: An id without a key, a number of bits that the extractor does not read, or invalid characters.
    """
    from ..payload.message import encode_id, raw

    sizes = extractor.sizes
    if arguments.expect_bits is not None:
        bits = raw(arguments.expect_bits).bits
        if len(bits) not in sizes:
            known = ", ".join(map(str, sizes))
            raise ValueError(f"--expect-bits: {len(bits)} bits; the extractor {extractor.name} reads {known}")
        return bits
    if arguments.expect_id is None:
        return None
    if key is None:
        raise ValueError("--expect-id: the bits of an id depend on the key; give --key")
    return encode_id(arguments.expect_id, key, sizes[0] if len(sizes) == 1 else None).bits


def fields(match: Match | None) -> dict[str, float] | None:
    """A match for JSON; None where the numbers of bits differ."""
    return match and {"bit_accuracy": round(match.bit_accuracy, 4), "log10_p": round(match.log10_p, 2)}


def sentence(match: Match | None) -> str:
    """A match in words."""
    if match is None:
        return "expected: another number of bits"
    return f"expected: {match.bit_accuracy:.1%} of the bits agree (by chance: {p_value(match.log10_p)})"
