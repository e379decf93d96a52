"""Prompts of the embedded model: a word-level tokenizer and a small text encoder.

A caption is split into lower-case words, which are repeated to fill the 64 tokens between a begin and an end token:
there is no padding, and a word's weight in the cross-attention does not depend on the caption's length. Words outside
of the vocabulary are hashed into buckets, which training covers by replacing known words at random. The encoder treats
each token separately, so that the attention map of a token belongs to its word alone.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor
from torch.nn import GELU, Embedding, LayerNorm, Linear, Module, Sequential, init

__all__ = ["TextEncoder", "Tokenizer", "Tokens"]

BLANK, BEGIN, END = 0, 1, 2
SPECIAL_TOKENS = 3
BUCKETS = 64
LENGTH = 64
WIDTH = 256
WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")


@dataclass(frozen=True)
class Tokens:
    """A tokenized text: 64 ids and, for each, the position of its word in the text (-1: no word)."""

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    words: tuple[str, ...]

    def content(self) -> tuple[int, ...]:
        """Indices of the tokens of words."""
        return tuple(index for index, position in enumerate(self.positions) if position >= 0)

    def of(self, word: str) -> tuple[int, ...]:
        """Indices of the tokens of a word, or of a phrase of several, wherever it occurs in the text.

        Raises:
            ValueError: The text does not contain the phrase, or it was truncated.
        """
        phrase = tuple(WORD.findall(word.lower()))
        found = {
            start + offset
            for start in range(len(self.words) - len(phrase) + 1)
            for offset in range(len(phrase))
            if phrase and self.words[start : start + len(phrase)] == phrase
        }
        indices = tuple(index for index, position in enumerate(self.positions) if position in found)
        if not indices:
            raise ValueError(f"word {word!r} is not in the prompt ({' '.join(self.words)}); choose one of its words")
        return indices


class Tokenizer:
    """Words to ids: special tokens, then hashed buckets, then the vocabulary in its order."""

    buckets = BUCKETS

    def __init__(self, vocabulary: Iterable[str]) -> None:
        self.vocabulary = tuple(vocabulary)
        self._ids = {word: SPECIAL_TOKENS + BUCKETS + index for index, word in enumerate(self.vocabulary)}

    @classmethod
    def from_captions(cls, captions: Iterable[str]) -> Tokenizer:
        """A tokenizer whose vocabulary is all words of the captions."""
        return cls(sorted({word for caption in captions for word in WORD.findall(caption.lower())}))

    def __len__(self) -> int:
        return SPECIAL_TOKENS + BUCKETS + len(self.vocabulary)

    def bucket(self, word: str) -> int:
        """The hashed bucket of a word."""
        return SPECIAL_TOKENS + zlib.crc32(word.encode()) % BUCKETS

    def __call__(self, text: str) -> Tokens:
        """Tokenize; words past the 62nd are dropped. Text without words gives blanks."""
        words = tuple(WORD.findall(text.lower()))[: LENGTH - 2]
        places = [index % len(words) if words else -1 for index in range(LENGTH - 2)]
        ids = [self._ids.get(words[p], self.bucket(words[p])) if p >= 0 else BLANK for p in places]
        return Tokens((BEGIN, *ids, END), (-1, *places, -1), words)


class TextEncoder(Module):
    """Token ids (B,64) -> context (B,64,256): embedding, position, one residual layer per token, LayerNorm."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.token = Embedding(vocabulary, WIDTH)
        self.position = Embedding(LENGTH, WIDTH)
        self.layer = Sequential(LayerNorm(WIDTH), Linear(WIDTH, 2 * WIDTH), GELU(), Linear(2 * WIDTH, WIDTH))
        self.norm = LayerNorm(WIDTH)
        init.normal_(self.token.weight, std=1.0)
        init.normal_(self.position.weight, std=0.1)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token(ids) + self.position.weight[: ids.shape[1]]
        return self.norm(x + self.layer(x))
