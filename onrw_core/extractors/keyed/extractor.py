"""The keyed extractor: spread spectrum on tiles, with blind synchronisation.

A watermark adds two layers to every tile of 64 x 64 pixels. The secret layer (`secret_layer`) is a sum of a key's
patterns, a sync pattern, which identifies the number of bits, and for each bit a carrier with the sign of the bit,
multiplied by keyed phases that differ from tile to tile. The public layer (`public_layer`) is a weak pilot, the same in
all tiles and for everybody, which carries the geometry and a label. To read, the image is rectified and whitened, the
phases are removed, the tiles are averaged, and the average tile is correlated with the patterns. With t the tile's
coefficients in the band and c_k the carriers,

    logit_k = sqrt(K) <c_k, t> / |t|

so that a tile that is the sum of exactly K carriers has logits of +-1.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ...imaging.geometry import Geometry
from ...imaging.metrics import luminance
from ...imaging.rounding import LEVELS
from ...payload.keys import Key, check_key
from ...payload.message import decode
from ...torch_modes import in_own_modes
from .. import KEYED, NO_LABEL
from ..base import AlreadyMarkedError, Extractor, frames_of
from ..reading import Detection, Reading
from .band import TILE, band_basis
from .pilot_search import detect
from .public_layer import PILOT_DIMENSIONS, pilot
from .reader import read
from .rectify import MAX_SIDE, Rectified
from .secret_layer import BIT_COUNTS, SecretLayer
from .tile_average import HalfTiles, half_tiles
from .views import whitened

__all__ = ["KeyedExtractor"]

logger = logging.getLogger(__name__)

# None of these is finely tuned: at about half and twice its value each changes the share of right bits by -1.4 to +1.1
# points (`onrw bench sensitivity`: three photos of 256 px, seven attacks, 1008 bits, geometry known). Lower sync
# margins gain bits there, at the cost of the sync pattern, which the search needs.
MARGIN, SYNC_MARGIN = 1.0, 0.5  # margins of the hinges: of the logits, and of the cosine of sync pattern and tile
# Windows of few tiles cannot reach the margins above; lower margins restrict the loss to the wrong bits.
WINDOW_MARGIN, WINDOW_SYNC_MARGIN = 0.35, 0.4
WINDOW = 5  # half tiles per side of the windows: about a tenth of an image of the working size
WINDOW_WEIGHT = 0.65  # weight of the windows; the whole image has the remaining weight
WHOLE = 2**31  # pixels a side: no limit
SHARPNESS = 6.0  # sharpness of the hinges
STRENGTH_WEIGHT = 0.05
# Of the public layer's loss, and the margin of the cosine of the pilot and its 64 coefficients of a window:
# docs/wire-format-2.md has the measurements.
PILOT_WEIGHT, PILOT_MARGIN = 0.6, 0.6
KEPT_WEIGHT = 2.0  # of what the image has already, where that contains watermarks: docs/quality.md


class KeyedExtractor(Extractor):
    """The extractor with a secret key; it has no weights.

    Attributes:
        name: "keyed".
        num_bits: Number of bits for `logits` and `loss`; `read` detects the number.
        key: The secret key of the patterns and of the messages.
        label: The public label of the watermark; None for no public layer.
        public: That of the image; they differ where a watermark without public layer is added to one.
        place: Row and column in the pattern of the frame's first tile.
        frame: Map from the image to the frame of its tiles; None if a tile begins at its upper left corner.
        kept: The image's half tiles, which the loss keeps; None where no other watermark is known of.
        layer: The key's patterns and phases.
    """

    name = KEYED
    marking: Mapping[str, Any] = {}

    def __init__(
        self,
        key: Key,
        num_bits: int = 48,
        label: str | None = NO_LABEL,
        place: tuple[int, int] = (0, 0),
        frame: Geometry | None = None,
        kept: HalfTiles | None = None,
    ) -> None:
        """
        Args:
            key: The secret key.
            num_bits: 32, 48, 64, 96 or 128.
            label: Public label of the watermark, one of `LABELS`; None for no public layer.
            place: Row and column in the pattern of the frame's first tile.
            frame: Map from the image to the frame of its tiles; None if a tile begins at its upper left corner.
            kept: The image's half tiles, which the loss is to keep; None for no such term.
        """
        check_key(key)
        if num_bits not in BIT_COUNTS:
            raise ValueError(f"num_bits is {num_bits}; the keyed extractor carries one of {BIT_COUNTS} bits")
        self.key, self.num_bits, self.label, self.place, self.frame = key, num_bits, label, place, frame
        self.kept = kept
        self.public = label
        self.layer = _layer(key)
        self._sync = self.layer.sync_for(num_bits).float()
        self._payload = self.layer.payload[:num_bits].float()
        self._pilot = None if label is None else pilot(label)[PILOT_DIMENSIONS].float()

    @property
    def sizes(self) -> tuple[int, ...]:
        return BIT_COUNTS

    def for_bits(self, num_bits: int) -> KeyedExtractor:
        super().for_bits(num_bits)
        if num_bits == self.num_bits:
            return self
        return KeyedExtractor(self.key, num_bits, self.label, self.place, self.frame, self.kept)

    def for_image(self, image: Tensor, label: str | None = NO_LABEL, again: bool = False) -> KeyedExtractor:
        """See `Extractor.for_image`. In an image that has a public layer, the watermark takes its frame and its label.

        So watermarks of several keys share one pilot, which is renewed, and the loss keeps those that are there.
        """
        image = image.detach().cpu()
        present = detect(image, quick=True)
        own = self._own(image, present)
        if own.detected and not again:
            raise self._already(own)
        digest = hashlib.sha256((image * LEVELS).round().to(torch.uint8).numpy().tobytes()).digest()
        place = self.layer.place(self.key, digest)
        if label is None or not present.found:
            extractor = KeyedExtractor(self.key, self.num_bits, label, place)
            extractor.public = present.label if label is None else label
            if present.found:
                logger.warning("the image has a public layer, which stays: it can be detected without the key")
        else:
            if present.label is not None and present.label != label:
                logger.warning("the image has the public label %s, which is not changed to %s", present.label, label)
            extractor = KeyedExtractor(self.key, self.num_bits, present.label or label, place, present.to_marked)
        # If one of this key were kept, it would be read in place of the new one.
        return extractor._keeping(image) if present.found and not own.detected else extractor

    @torch.no_grad()
    def _keeping(self, image: Tensor) -> KeyedExtractor:
        """This extractor, whose loss keeps what an image (1, 3, H, W) has in the band."""
        self.kept = half_tiles(self._rectified(image, None, WHOLE))
        return self

    def refuse_marked(self, image: Tensor) -> None:
        image = image.detach().cpu()
        own = self._own(image, detect(image, quick=True))
        if own.detected:
            raise self._already(own)

    def _own(self, image: Tensor, present: Detection) -> Reading:
        """The watermark of the same key in an image, if there is one, where the public layer says."""
        return read(image, self.layer, search=False, at=present.to_marked)

    def _already(self, own: Reading) -> AlreadyMarkedError:
        message = decode(own.logits, self.key)
        carried = f"{message.kind} {message.value}" if message.kind else f"{own.num_bits} raw bits"
        return AlreadyMarkedError(
            f"image: carries a watermark of this key already ({carried}, p = 1e{own.log10_p:.0f}); mark the "
            "original, or add --again (setting `again`) for a second watermark"
        )

    def for_scene(self, image: Tensor) -> KeyedExtractor:
        return self if self.kept is None else self.for_window(0, 0)._keeping(image.detach().cpu())

    def for_window(self, top: int, left: int) -> KeyedExtractor:
        if self.frame is not None or top % TILE or left % TILE:
            frame = (self.frame or Geometry.identity()) @ Geometry.shift(left, top)
            return KeyedExtractor(self.key, self.num_bits, self.label, self.place, frame, self.kept)
        place = self.place[0] + top // TILE, self.place[1] + left // TILE
        return KeyedExtractor(self.key, self.num_bits, self.label, place, kept=self.kept)

    def pattern(self, bits: Tensor, size: tuple[int, int], pilot_share: float = 0.3) -> Tensor:
        """The watermark that the patterns define, (height, width), of root mean square 1, without regard to an image.

        Args:
            bits: (num_bits,) of 0/1.
            size: (height, width).
            pilot_share: Norm of the pilot relative to that of the sync pattern.
        """
        payload = F.normalize((bits.double() * 2 - 1) @ self.layer.payload[: self.num_bits], dim=0)
        rows, columns = (-(-side // TILE) for side in size)
        pattern = self.layer.sync_for(self.num_bits) + payload
        tiles = self.layer.with_phases(pattern, rows, columns, self.place)
        if self.label is not None:
            tiles = tiles + pilot_share * pilot(self.label)
        pixels = (tiles @ band_basis().T).float()
        image = rearrange(pixels, "rows columns (y x) -> (rows y) (columns x)", y=TILE)[: size[0], : size[1]]
        return image / image.square().mean().sqrt()

    def tile(self, images: Tensor, geometry: Geometry | None = None) -> Tensor:
        """The average tile in the band without phases, (B, 364), of images with known geometry; differentiable.

        Args:
            images: (B, 3, H, W) in [0, 1].
            geometry: Maps coordinates of the images to those of the working image; None for unchanged.
        """
        return self.layer.average(self._rectified(images, geometry))

    def _rectified(self, images: Tensor, geometry: Geometry | None, limit: int = MAX_SIDE) -> Rectified:
        """The whitened images in the frame of the pattern, of at most `limit` pixels a side."""
        if self.frame is not None:
            geometry = self.frame if geometry is None else self.frame @ geometry
        rectified = whitened(luminance(images), geometry, limit)
        row, column = self.place
        return rectified._replace(x0=rectified.x0 + column * TILE, y0=rectified.y0 + row * TILE)

    def logits(self, images: Tensor, geometry: Geometry | None = None) -> Tensor:
        """Soft bits (B, num_bits), about -1 to 1, positive = bit 1; see `Extractor.logits`."""
        return self._logits(self.tile(images, geometry))

    def _logits(self, tile: Tensor) -> Tensor:
        return F.normalize(tile, dim=1) @ self._payload.to(tile).T * math.sqrt(self.num_bits)

    def loss_and_logits(self, images: Tensor, bits: Tensor, geometry: Geometry | None = None) -> tuple[Tensor, Tensor]:
        """Message loss per image, (B,), and the soft bits: see `Extractor.loss_and_logits`.

        The loss is that of the average tile, and of every window of 2.5 x 2.5 tiles, as for a crop. Bits and sync
        pattern have hinge losses, dominated by the weakest bits and a weak sync pattern. The strength term, the
        absolute correlation with the tile, has a gradient that does not depend on the state of the bits. The windows
        make crops at any position readable. The pilot has the same two terms: a hinge in every window, and strength.

        Watermarks of other keys are linear functions of the half tiles, which nobody knows without these keys. Without
        a term for them the optimisation would remove them, as it removes the grain of the photo: they are noise to its
        own patterns. So `kept` adds one minus the cosine between the half tiles as they are and as they were.

        Args:
            images: (B, 3, H, W) in [0, 1].
            bits: (num_bits,) of 0/1.
            geometry: See `logits`.
        """
        rectified = self._rectified(images, geometry)
        weight = rectified.weight
        count = rectified.y[0].numel() if weight is None else weight.sum((1, 2, 3))[:, None].clamp(min=1)  # flat: 0
        halves = half_tiles(rectified)
        scale = TILE**2 / count
        signs = bits.to(images) * 2 - 1
        secret = self.layer.without_phases(halves.values, halves.row, halves.column, per_tile=2)
        tile = scale * secret.sum((1, 2))
        pattern = F.normalize(signs @ self._payload.to(tile), dim=0) + self._sync.to(tile)
        loss = self._tile_loss(tile, signs, MARGIN, SYNC_MARGIN) - STRENGTH_WEIGHT * (tile @ pattern)
        windowed = min(secret.shape[1:3]) >= WINDOW and max(secret.shape[1:3]) > WINDOW + 1
        if windowed:
            parts = self._tile_loss(_windows(secret), signs, WINDOW_MARGIN, WINDOW_SYNC_MARGIN).mean(1)
            loss = torch.lerp(loss, parts, WINDOW_WEIGHT)
        if self._pilot is not None:
            expected, inside = self._pilot.to(tile), PILOT_DIMENSIONS.to(tile.device)
            public = halves.values[..., inside]
            strength = scale * public.sum((1, 2)) @ expected
            parts = _windows(public) if windowed else public.sum((1, 2))[:, None]
            missing = _hinge(F.normalize(parts, dim=-1) @ expected, PILOT_MARGIN).mean(1)
            loss = loss + PILOT_WEIGHT * (missing - STRENGTH_WEIGHT * strength)
        if self.kept is not None:
            loss = loss + KEPT_WEIGHT * (1 - _likeness(halves, self.kept))
        return loss, self._logits(tile)

    def _tile_loss(self, tile: Tensor, signs: Tensor, margin: float, sync_margin: float) -> Tensor:
        """Hinge losses of bits and sync pattern for tiles (..., 364): (...)."""
        unit = F.normalize(tile, dim=-1)
        margins = unit @ self._payload.to(tile).T * (math.sqrt(self.num_bits) * signs)
        return _hinge(margins, margin).mean(-1) + _hinge(unit @ self._sync.to(tile), sync_margin)

    @in_own_modes
    @torch.no_grad()
    def read(
        self,
        image: Tensor,
        key: Key | None = None,
        *,
        search: bool = True,
        fpr: float = 1e-6,
        size: int | None = None,
        deep: bool = False,
        progress: Callable[[float], None] | None = None,
    ) -> Reading:
        """Detect and read a watermark of this key by blind search; see `Extractor.read`.

        The number of bits is detected as well. If nothing is detected, the bits are the best guess for `num_bits`.
        """
        start = time.perf_counter()
        frames = frames_of(image).cpu()
        found = read(frames, self.layer, search=search, fpr=fpr, size=size, deep=deep, progress=progress)
        if found.detected:
            found = replace(found, message=decode(found.logits, key or self.key))
        elif found.tile is not None:
            found = replace(found, logits=self._logits(found.tile[None])[0])
        return replace(found, seconds=time.perf_counter() - start)

    def guesses(self, reading: Reading, sizes: Iterable[int]) -> dict[int, Tensor]:
        if reading.detected or reading.tile is None:
            return super().guesses(reading, sizes)
        tile = reading.tile[None]
        return {size: self.for_bits(size)._logits(tile)[0] for size in sizes}


@lru_cache(maxsize=8)
def _layer(key: Key) -> SecretLayer:
    return SecretLayer.from_key(key)


def _windows(halves: Tensor) -> Tensor:
    """Sums over all windows of half tiles (B, rows, columns, d), up to a factor: (B, windows, d)."""
    grid = rearrange(halves, "b rows columns d -> b d rows columns")
    return rearrange(F.avg_pool2d(grid, WINDOW, stride=1), "b d rows columns -> b (rows columns) d")


def _likeness(halves: HalfTiles, others: HalfTiles) -> Tensor:
    """Cosine between half tiles where there are both, (B,); 0 where there are none."""
    (height, width), (other_height, other_width) = halves.values.shape[1:3], others.values.shape[1:3]
    rows, other_rows = _shared(halves.row, height, others.row, other_height)
    columns, other_columns = _shared(halves.column, width, others.column, other_width)
    first = halves.values[:, rows, columns].flatten(1)
    second = others.values[:, other_rows, other_columns].flatten(1)
    return F.cosine_similarity(first, second.to(first), dim=1)


def _shared(start: int, length: int, other_start: int, other_length: int) -> tuple[slice, slice]:
    """What two lines of half tiles share, as a slice of each; both are empty where they share nothing."""
    first = max(start, other_start)
    last = max(first, min(start + length, other_start + other_length))
    return slice(first - start, last - start), slice(first - other_start, last - other_start)


def _hinge(value: Tensor, margin: float) -> Tensor:
    return F.softplus(SHARPNESS * (margin - value)) / SHARPNESS
