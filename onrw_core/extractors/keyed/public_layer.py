"""The public layer: a weak periodic pattern that is the same for everybody, the pilot, and the label that it carries.

The pilot is the same in every tile, so it forms a lattice of peaks in the spectrum of the image, which gives
rotation, scale, aspect, flip and the position within a tile. It has 32 frequencies of the band, whole orbits of flips
and quarter turns, so that these map the lattice to itself. In the space of their 64 coefficients it is

    (sync + word_w) / sqrt 2,     w = 16 (version - 2) + code of the label,

with 33 orthonormal patterns, sync and 32 words, derived from a published byte string. The words are an orthogonal code
with soft decisions: a word is read correctly if its correlation is the largest of 32, far below the strength at which
single bits could be read. Everybody can read, write and remove this layer: it tells that an image is marked and what
its label is, but not by whom; that takes the key.

The p-value of the public layer: the pilot was drawn once from all directions of its 64 dimensions, independently of any
image that was not marked. So its cosine with the average tile is distributed as that of a random direction
(`statistics`), corrected for shifts, orientations, both signs and the words: each word has a share of the
false-positive rate, fixed beforehand (weighted Bonferroni). docs/statistics.md has the calibration.
"""

from __future__ import annotations

import hashlib
import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import LABELS
from .alignment import ORIENTATIONS, align, oriented, refine, roughness
from .band import BYTES_PER_INTEGER, DIMENSIONS, FREQUENCIES, TILE, orthonormal_rows
from .statistics import log_beta_tail, sync_log_p
from .tile_average import shifted

__all__ = ["PILOT_DIMENSIONS", "PILOT_FREQUENCIES", "SYNC", "WORDS", "PublicMark", "pilot", "read_public"]

CODES = 16  # a label's code is its position in `LABELS`; 5 to 15 are spare
VERSION, VERSIONS = 2, 2  # of this format, and how many can be told apart
STREAM = b"onrw wire format 2: public layer"
# One frequency of each orbit under flips and quarter turns: 4.1 to 7.8 cycles per tile, so that the pilot survives
# resizing to .3 (a tile of 19 pixels), at many radii, so that its lattice fits at one scale only, and with even and odd
# kx + ky: if all were odd, a shift by half a tile would negate the pilot.
ORBITS = ((1, 4), (1, 5), (2, 5), (3, 5), (4, 5), (2, 7), (3, 7), (5, 6))


def _pilot() -> Tensor:
    """Indices into `FREQUENCIES`, (32,)."""
    return torch.tensor(
        [i for i, (kx, ky) in enumerate(FREQUENCIES.tolist()) if tuple(sorted((abs(kx), abs(ky)))) in ORBITS]
    )


PILOT = _pilot()
PILOT_FREQUENCIES = FREQUENCIES[PILOT]
PILOT_DIMENSIONS = torch.cat([PILOT, PILOT + len(FREQUENCIES)])


def _patterns() -> Tensor:
    """Sync and words, (33, 364) float64."""
    rows, count = 1 + VERSIONS * CODES, len(PILOT_DIMENSIONS)
    stream = hashlib.shake_256(STREAM).digest(rows * count * BYTES_PER_INTEGER)
    patterns = torch.zeros(rows, DIMENSIONS, dtype=torch.float64)
    patterns[:, PILOT_DIMENSIONS] = orthonormal_rows(stream, rows)
    return patterns


_PATTERNS = _patterns()
SYNC, WORDS = _PATTERNS[0], _PATTERNS[1:]

KNOWN = 0.9  # of the false-positive rate: the words of this version's labels, evenly; the spare ones have the rest
# A label is reported if a random word would be as strong in one of 10^5 pilots.
CLEAR_LABEL = math.log(1e-5)


def _shares() -> Tensor:
    """Of the false-positive rate, for each word, (32,)."""
    shares = torch.full((len(WORDS),), (1 - KNOWN) / (len(WORDS) - len(LABELS)), dtype=torch.float64)
    shares[: len(LABELS)] = KNOWN / len(LABELS)
    return shares


SHARES = _shares()


class PublicMark(NamedTuple):
    """The public layer in one average tile.

    Attributes:
        orientation: Index into `alignment.ORIENTATIONS`.
        x, y: Pixels that the oriented tile was moved right and down.
        negative: Whether the image is a negative.
        log_p: Natural logarithm of the p-value of the pilot in this tile, all words counted.
        cosine: Of the tile's 64 coefficients and the pilot.
        word: Index into `WORDS`.
        clear: Whether the word is certain.
    """

    orientation: int
    x: Tensor
    y: Tensor
    negative: bool
    log_p: float
    cosine: float
    word: int
    clear: bool

    @property
    def pattern(self) -> Tensor:
        """The pilot that was found, (364,) float32."""
        return _with_word(self.word).float()

    @property
    def signed(self) -> Tensor:
        """The same with the sign that it has in the image."""
        return -self.pattern if self.negative else self.pattern

    @property
    def version(self) -> int:
        """Of the format."""
        return VERSION + self.word // CODES

    @property
    def label(self) -> str | None:
        """One of `LABELS`; None if the word is not clear, or unknown to this version."""
        code = self.word % CODES
        return LABELS[code] if self.clear and self.version == VERSION and code < len(LABELS) else None

    @property
    def upright(self) -> bool:
        """Whether the image is a positive, neither flipped nor turned by a quarter."""
        return self.orientation == 0 and not self.negative

    def reread(self, tile: Tensor) -> PublicMark:
        """The same position with the cosine and the word of another tile (364,), not negated."""
        cosine, word, clear = _word(tile)
        return self._replace(cosine=cosine, word=word, clear=clear)


def _with_word(word: int) -> Tensor:
    return (SYNC + WORDS[word]) / math.sqrt(2)


def pilot(label: str) -> Tensor:
    """The pilot that carries a label, a unit vector (364,) float64.

    Raises:
        ValueError: Not one of `LABELS`.
    """
    if label not in LABELS:
        raise ValueError(f"label: no public label {label!r}; choose from {', '.join(LABELS)}")
    return _with_word(LABELS.index(label))


_PILOTS = torch.stack([pilot(label) for label in LABELS])
ALL = torch.arange(len(ORIENTATIONS))
UPRIGHT = ALL[:1]


@torch.no_grad()
def read_public(tile: Tensor, upright: bool = False) -> PublicMark:
    """Align an average tile (1, 364) with the pilots over all shifts, and read its word.

    The pilots of all labels are tried, since the sync pattern alone has half of the energy. (In 32 random crops to a
    tenth of the area, four training images marked at quality 90, the sync pattern had its highest peak at the right
    shift in 28, the pilots in 32.) Spare words are aligned by the sync pattern that they share.

    Args:
        tile: (1, 364).
        upright: Whether to leave out flips, quarter turns and negatives.
    """
    part = torch.zeros_like(tile)
    part[:, PILOT_DIMENSIONS] = tile[:, PILOT_DIMENSIONS]
    patterns, orientations = (_PILOTS, UPRIGHT) if upright else (torch.cat([_PILOTS, -_PILOTS]), ALL)
    found = align(part, patterns.to(tile), orientations)
    best = int(found.cosine[0].argmax())
    orientation, negative, word = int(found.orientation[0, best]), best // len(_PILOTS), best % len(_PILOTS)
    turned = oriented(part)[0, orientation] * (1 - 2 * negative)
    x, y, _ = refine(turned, _PILOTS[word].to(tile), found.x[0, best], found.y[0, best])
    cosine, word, clear = _word(shifted(turned, x, y))
    tries, dimensions = len(orientations) * (1 if upright else 2) / float(SHARES[word]), len(PILOT_DIMENSIONS)
    log_p = sync_log_p(np.array([cosine]), roughness(part).numpy(), dimensions, TILE * TILE, tries)
    return PublicMark(orientation, x, y, bool(negative), float(log_p[0]), cosine, word, clear)


def _word(tile: Tensor) -> tuple[float, int, bool]:
    """The cosine of a tile (364,) in place and its likeliest pilot, the word, and whether that is certain."""
    unit = F.normalize(tile[PILOT_DIMENSIONS].double(), dim=0)
    sync, strengths = SYNC[PILOT_DIMENSIONS] @ unit, WORDS[:, PILOT_DIMENSIONS] @ unit
    share = strengths * strengths.abs() / (1 - sync**2).clamp(min=1e-12)
    tails = log_beta_tail(share.clamp(min=0).numpy(), 0.5, (len(PILOT_DIMENSIONS) - 2) / 2) - np.log(2 * SHARES.numpy())
    word = int(tails.argmin())
    return float(sync + strengths[word]) / math.sqrt(2), word, bool(tails[word] <= CLEAR_LABEL)
