"""Tokenizer and text encoder of the embedded model."""

from __future__ import annotations

import pytest
import torch

from onrw_core.mini.text import BEGIN, BLANK, END, LENGTH, WIDTH, TextEncoder, Tokenizer

CAPTIONS = ["a photo of a red apple", "a photo of a hat"]


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer.from_captions(CAPTIONS)


def test_caption_is_repeated_between_begin_and_end(tokenizer):
    tokens = tokenizer("A photo, of a HAT!")
    assert len(tokens.ids) == LENGTH and tokens.ids[0] == BEGIN and tokens.ids[-1] == END
    assert tokens.words == ("a", "photo", "of", "a", "hat")
    assert tokens.ids[1:6] == tokens.ids[6:11] and tokens.ids[1] == tokens.ids[4]
    assert tokens.content() == tuple(range(1, LENGTH - 1))


def test_empty_text_has_no_content(tokenizer):
    tokens = tokenizer("  !! ")
    assert tokens.ids == (BEGIN, *[BLANK] * (LENGTH - 2), END) and tokens.content() == ()


def test_spans_of_a_word_and_of_a_phrase(tokenizer):
    tokens = tokenizer("a photo of a red apple")
    assert tokens.of("Apple")[:3] == (6, 12, 18)
    assert tokens.of("red apple")[:4] == (5, 6, 11, 12)
    assert tokens.of("a")[:3] == (1, 4, 7)
    with pytest.raises(ValueError, match="pear"):
        tokens.of("pear")
    with pytest.raises(ValueError, match="apple red"):
        tokens.of("apple red")
    with pytest.raises(ValueError, match="word '' is not in the prompt"):
        tokens.of("")


def test_unknown_words_have_stable_ids_of_their_own_range(tokenizer):
    known, unknown = tokenizer("hat").ids[1], tokenizer("zeppelin").ids[1]
    assert unknown == tokenizer.bucket("zeppelin") == Tokenizer([]).bucket("zeppelin")
    assert unknown < known < len(tokenizer)


def test_long_text_is_cut(tokenizer):
    tokens = tokenizer(" ".join(f"w{k}" for k in range(100)))
    assert len(tokens.ids) == LENGTH and len(tokens.words) == LENGTH - 2
    with pytest.raises(ValueError, match="word 'w99' is not in the prompt"):
        tokens.of("w99")


def test_encoder_treats_each_token_by_itself(tokenizer):
    torch.manual_seed(0)
    encoder = TextEncoder(len(tokenizer))
    red = torch.tensor([tokenizer("a photo of a red apple").ids])
    hat = red.clone()
    hat[0, 5] = tokenizer("hat").ids[1]
    a, b = encoder(red), encoder(hat)
    assert a.shape == (1, LENGTH, WIDTH)
    changed = (a != b).any(-1)[0].nonzero().flatten().tolist()
    assert changed == [5]
