"""Places of a prompt's words among the tokens of its embeddings, for any text encoder of ComfyUI.

An encoder may use several tokenizers, of which a family takes one (Flux: T5), or joins two (SD3: CLIP, then T5). It may
put the text into a template and cut the template's beginning off (Qwen-Image). All this shows in what ComfyUI returns:
the lengths tell which tokens became embeddings, and an empty text tells which tokens are the template's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from comfy.sd1_clip import escape_important, token_weights, unescape_important

__all__ = ["places"]

CLIP = ("g", "l", "h")  # ComfyUI's names of CLIP tokenizers, whose tokens are joined channel by channel
Tokenize = Callable[..., Mapping[str, list]]
Entry = tuple[Any, ...]  # token, weight, word; 0 is no word


def places(
    tokenize: Tokenize, text: str, embedded: int, word: str = "", **options: bool
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Indices of the embeddings of all words of a text, and of one word or phrase wherever it occurs.

    Args:
        tokenize: `CLIP.tokenize`.
        text: The prompt.
        embedded: Number of its embeddings.
        word: The word or phrase; none by default.
        options: Tokenizer options for texts that are compared with the prompt.

    Raises:
        ValueError: If the text does not contain the word.
    """
    content: set[int] = set()
    chosen: set[int] = set()

    def entries(name: str, text: str, **options: bool) -> list[Entry]:
        return [
            entry for chunk in tokenize(text, return_word_ids=True, tokenizer_options=options)[name] for entry in chunk
        ]

    def alone(name: str, text: str) -> list[Entry]:
        return entries(name, text, **options)

    streams = {name: [entry for chunk in chunks for entry in chunk] for name, chunks in tokenize(text).items()}
    for name, offset in _used({name: len(stream) for name, stream in streams.items()}, embedded).items():
        own = entries(name, text)
        first, last = _middle(own, alone(name, ""))
        words = [i for i in range(first, last) if own[i][2] and 0 <= i + offset < embedded]
        content.update(i + offset for i in words)
        for wanted in {tuple(run) for run in _runs(partial(alone, name), text, word)}:
            for start in range(first, last - len(wanted) + 1):
                run = own[start : start + len(wanted)]
                # An encoder that repeats short texts goes from the last word to the first: no phrase of the text.
                in_order = all(a[2] <= b[2] for a, b in zip(run, run[1:], strict=False))
                if in_order and tuple(entry[0] for entry in run) == wanted:
                    chosen.update(i + offset for i in range(start, start + len(wanted)) if i in words)
    if word and not chosen:
        raise ValueError(f"word: {word!r} is not in the text; choose a word of {text!r}")
    return tuple(sorted(content)), tuple(sorted(chosen))


def _used(lengths: Mapping[str, int], embedded: int) -> dict[str, int]:
    """The tokenizers whose tokens became embeddings, with the index of their first token among these."""
    clip = max((length for name, length in lengths.items() if name in CLIP), default=0)
    others = {name: length for name, length in lengths.items() if name not in CLIP}
    for name, length in others.items():
        if length == embedded:
            return {name: 0}
        if clip and clip + length == embedded:
            return {next(name for name in lengths if name in CLIP): 0, name: clip}
    name = next(iter(others if others and embedded != clip else lengths))
    return {name: min(0, embedded - lengths[name])}  # the beginning of a template is cut off


def _runs(entries: Callable[[str], list[Entry]], text: str, word: str) -> Iterator[list[Any]]:
    """The tokens of each occurrence of a word or phrase: those beyond the text before it, up to the text after it."""
    plain = unescape_important("".join(part for part, _ in token_weights(escape_important(text), 1.0)))
    full = entries(plain)
    if [entry[0] for entry in full] != [entry[0] for entry in entries(text)]:
        plain, full = text, entries(text)  # this tokenizer reads weights as text
    _, last = _middle(full, entries(""))
    found = [*re.finditer(rf"(?<!\w){re.escape(word)}(?!\w)", plain, re.IGNORECASE)] if word else []
    for match in found or (re.finditer(re.escape(word), plain, re.IGNORECASE) if word else ()):
        start = _shared(full, entries(plain[: match.start()].rstrip()))
        end = min(last, _shared(full, entries(plain[: match.end()])))
        run = [entry[0] for entry in full[start:end] if entry[2]]
        if run:
            yield run


def _middle(own: list[Entry], empty: list[Entry]) -> tuple[int, int]:
    """The range of the tokens of a text between those that it shares with the empty text."""
    first = _shared(own, empty)
    return first, len(own) - _shared(own[first:][::-1], empty[first:][::-1])


def _shared(a: list[Entry], b: list[Entry]) -> int:
    """Number of tokens with which both begin."""
    for index, (one, other) in enumerate(zip(a, b, strict=False)):
        if one[0] is not other[0] and one[0] != other[0]:
            return index
    return min(len(a), len(b))
