"""--expect-bits and --expect-id: what a photo should say, and how far it does."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .common import p_value

if TYPE_CHECKING:
    from torch import Tensor

    from ..keys import Key

__all__ = ["add_expected", "expected_bits", "match", "sentence"]


def add_expected(parser: argparse.ArgumentParser) -> None:
    expected = parser.add_mutually_exclusive_group()
    expected.add_argument("--expect-bits", "--expect", metavar="0101...", help="compare with these raw bits")
    expected.add_argument("--expect-id", metavar="HEX", help="compare with this id")


def expected_bits(arguments: argparse.Namespace, key: Key | None, sizes: Sequence[int], reader: str) -> Tensor | None:
    """The bits that the arguments ask for, None if they ask for none.

    Args:
        arguments: With those of `add_expected`.
        key: Turns an id into bits.
        sizes: Numbers of bits that the reader can read.
        reader: What reads them, for the message: "a mark carries".

    Raises:
        ValueError: Another number of bits, or characters that are none.
    """
    from ..message import encode_id, raw

    if arguments.expect_bits is not None:
        bits = raw(arguments.expect_bits).bits
        if len(bits) not in sizes:
            raise ValueError(f"--expect-bits: {len(bits)} bits; {reader} {', '.join(map(str, sizes))}")
        return bits
    if arguments.expect_id is None:
        return None
    return encode_id(arguments.expect_id, key, sizes[0] if len(sizes) == 1 else None).bits


def match(bits: Tensor, expected: Tensor | None) -> dict[str, Any] | None:
    """Share of equal bits and log10 of the chance of so many; None for another number of bits."""
    from ..detection import match_log10_p

    if expected is None or len(bits) != len(expected):
        return None
    equal = (bits == expected).double().mean().item()
    return {"bit_accuracy": round(equal, 4), "log10_p": round(match_log10_p(bits, expected), 2)}


def sentence(found: dict[str, Any] | None) -> str:
    """`match` in words."""
    if found is None:
        return "expected: another number of bits"
    return f"expected: {found['bit_accuracy']:.1%} of the bits agree (by chance: {p_value(found['log10_p'])})"
