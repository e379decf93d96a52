"""Reading with others' decoders: bits from the picture as it is, and what they say.

Such a decoder has no sync pattern: it gives bits for any picture. That a mark is present follows from the message
alone, whose codewords are rare and keyed. With random bits, the chance that one of M messages lies within e wrong bits
is

    P <= M 2^-n sum_{i <= e} binomial(n, i),   and at most the `false_accept` of the message's check,

so a message without wrong bits says more than one with some that were set right. Raw bits have no check; only their
match with given ones can be judged (`detection.match_log10_p`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..keys import Key
from ..message import Decoded, capacity, decode, false_accept
from .base import Extractor

__all__ = ["MARKING", "PlainReading", "message_log10_p", "read_plain"]

# Of `optimise.Settings`, for marks that such decoders read: attacks that they cannot undo drown the others out, they
# look at colours, they do not divide by local contrast (so the gradient may say where to be strong), and a step through
# the model costs little more than one on the picture, where steps go further. Their gradients differ much from attack
# to attack, so an iteration sees more of them.
MARKING = {"mix": "upright", "luma_only": False, "visibility": False, "warm_steps": 16, "attacks": 6}

TEXT_AND_ID_HEADERS = 3


@dataclass(frozen=True)
class PlainReading:
    """What a decoder read from one picture.

    Attributes:
        detected: Whether there is a message of this key, at the false-positive rate that was asked for.
        log10_p: Base-10 logarithm of the chance that random bits hold one as clearly; 0 without a message.
        bits: (k,) of 0/1, given whether or not they mean anything.
        logits: (k,), positive = bit 1.
        message: What they say; empty where none was detected.
    """

    detected: bool
    log10_p: float
    bits: Tensor
    logits: Tensor
    message: Decoded


def message_log10_p(num_bits: int, corrected: int) -> float:
    """Base-10 logarithm of the chance that random bits are a message with at most `corrected` wrong bits.

    Args:
        num_bits: n, one of `message.SIZES`.
        corrected: e.
    """
    room = capacity(num_bits)
    messages = 2**room.payload * (TEXT_AND_ID_HEADERS if room.utf8_bytes else 1)
    ball = sum(math.comb(num_bits, i) for i in range(corrected + 1))
    return min(math.log10(messages * ball) - num_bits * math.log10(2), math.log10(false_accept(num_bits)))


@torch.no_grad()
def read_plain(extractor: Extractor, image: Tensor, key: Key | None, fpr: float = 1e-6) -> PlainReading:
    """Read one picture with a decoder.

    Args:
        extractor: Others' decoder.
        image: (3, H, W) in [0, 1].
        key: Of the message; None to read raw bits only.
        fpr: Largest rate of false alarms.
    """
    logits = extractor.logits(image[None])[0].cpu()
    message = Decoded() if key is None else decode(logits, key)
    log10_p = 0.0 if message.kind is None else message_log10_p(len(logits), message.corrected)
    detected = message.kind is not None and log10_p <= math.log10(fpr)
    return PlainReading(detected, log10_p, (logits > 0).long(), logits, message if detected else Decoded())
