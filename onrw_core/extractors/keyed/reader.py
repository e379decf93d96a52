"""Blind reading with a key: the geometry of a marked image, its bits, and a p-value that counts all attempts.

1. The image as received, and at the working size: its tiles where they are, and where the pilot puts them.
2. The search: the geometries that the pilot proposes (`hypotheses`).
3. After its first stage, which finds most: the key alone (`matched_filter`), for images without pilot that were
   shifted, cropped, flipped or turned by quarters.
4. Last, and on request only, the deep search: the key alone under many rotations and scales, for some minutes.

In each attempt the key's patterns are compared at all places of the pattern, and the geometry of promising attempts is
refined by the sync pattern. The reading stops at the first attempt whose p-value is clearly below the limit. Its bits
are those of the projection with the larger sync cosine. If nothing is detected, they are a guess: those of the attempt
that key and pilot together find likeliest. The pilot proves nothing of the key, so it does not count in the p-value.

Every attempt j has a weight w_j, fixed beforehand, and the weights sum to 1. Then min_j p_j / w_j is a p-value for
all of them together (weighted Bonferroni), wherever the reading stops.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor

from ...imaging.geometry import Geometry, size_of
from ...payload.message import Decoded
from ..base import log10_rate
from ..reading import Reading, pose_of
from .alignment import ORIENTATIONS
from .band import TILE
from .hypotheses import searched, unsearched
from .matched_filter import AREA, peaks
from .pilot_search import GAIN, PREDICTED_GAIN, PilotSearch, moves
from .public_layer import PublicMark
from .refinement import covered_tiles, refined_geometry
from .secret_layer import BIT_COUNTS, PERIOD, SHIFT_AREA, SecretLayer
from .tile_average import coefficients, placed_tiles, shifted
from .views import RECEIVED_SIDE, Views

__all__ = ["Place", "by_key", "places", "read", "tiles_at"]

# Shares of the false-positive rate: the image as received and at the working size; the key alone; the rest is the
# search's. Without a search, the first has all of it.
RECEIVED_WEIGHT, KEY_WEIGHT = 0.5, 0.1
DEEP_WEIGHT = 0.5  # of the deep search, where it is requested; the others share the rest
# The deep search reads the centre of an image. Half a step of rotation and of scale displace its corners by 2 pixels.
# In a centre of 256 pixels, 16 tiles, weak marks were lost among the peaks of noise, of which the highest of all has 6
# to 7 standard deviations: the right peak had 6.8 to 11 in seven mosaics of training photos, and here it has 9.4 to 15.
DEEP_SIDE = 384  # pixels of the marked frame
DEEP_ANGLES = torch.linspace(-10, 10, 35).tolist()  # degrees
DEEP_SCALES = (torch.linspace(math.log(0.7), math.log(1.4), 60)).exp().tolist()  # of the received image's content
DEEP_PEAKS = 12
UNMOVED_WEIGHT = 0.1  # of an image's tiles where they are; whole images have p-values to spare
# Square pixels. The pilot of a small crop gives the shift to about 2 pixels, and the sync pattern refines it: of 16
# random crops to a tenth of the area (four training images at quality 90) 13 were present, and 11 without refinement.
PILOT_AREA = 16.0
KEY_PEAKS, UPRIGHT_PEAKS = 6, 2  # peaks of the matched filter that are read
UPRIGHT_WEIGHT = 0.3  # of those in luminance alone, upright
REFINED_SIDE = 1536  # of the largest centre that a refinement uses, pixels: 576 tiles
GROWTH = 2.0  # growth of that side per refinement: a geometry that is correct in the centre may be wrong further out
# Times log10 fpr. With watermarks of 48 bits in white noise, 9 % of the bits are wrong at the first and 1 % at the
# second (tests/extractors/keyed/test_thresholds.py): below `CLEAR` the reading searches for a better geometry, and from
# `SURE` on a geometry that took no search is not refined.
CLEAR, SURE = 3, 8
# Refinements of a detected watermark at most: REFINED_SIDE is reached from 256 pixels in three, and three more.
SETTLING = 6
# log_sync below which an attempt's geometry is refined: by definition one in ten attempts on an unmarked image. The
# payload must not influence that choice.
PROMISING = math.log(0.1)


@dataclass(frozen=True)
class Place:
    """A geometry to be read with a key.

    Attributes:
        projection: Index into `colour_projection.projections`.
        geometry: Received to marked, up to whole tiles.
        weight: w_j.
        side: Largest side of the centre that is read, pixels.
        searched: Whether the search found it.
        tries: Alternatives that it was chosen from by the key.
        area: Shifts that it was chosen from by the key, square pixels.
        pilot: The public layer there, where it put the tiles: its p-value takes no part in the key's.
        by_key: Whether the key alone found it, as a shift of the unsearched image.
    """

    projection: int
    geometry: Geometry
    weight: float
    side: int
    searched: bool
    tries: float = 1.0
    area: float = SHIFT_AREA
    pilot: PublicMark | None = None
    by_key: bool = False


@dataclass(frozen=True)
class Attempt:
    """A tile read at one place.

    Attributes:
        place: Where.
        tile: (364,), without phases, shifted into place; that of the positive if the image is a negative.
        geometry: Map from the received image to the pattern.
        count: Index into `BIT_COUNTS`.
        negative: Whether the image is a negative.
        cosine: Cosine of the tile and that sync pattern.
        log_sync: Natural logarithm of the sync pattern's p-value, before any refinement.
        log10_p: log10 of the p-value of presence in this attempt alone.
        side: Largest side of the centre that was read, pixels.
        projection: Index into `colour_projection.projections`.
        still: Whether the last refinement changed nothing, so that another would not either.
    """

    place: Place
    tile: Tensor
    geometry: Geometry
    count: int
    negative: bool
    cosine: float
    log_sync: float
    log10_p: float
    side: int
    projection: int
    still: bool = False

    @property
    def total_log10_p(self) -> float:
        return min(0.0, self.log10_p - math.log10(self.place.weight))

    @property
    def likely(self) -> float:
        """The less, the likelier that bits which prove nothing are right: the pilot's evidence counts as well."""
        pilot = self.place.pilot
        return self.log10_p - math.log10(self.place.weight) + (0.0 if pilot is None else pilot.log_p / math.log(10))


def places(finder: PilotSearch, layer: SecretLayer | None, size: int | None, search: bool) -> Iterator[Place]:
    """The places to be read, in order; without a layer those that do not depend on the key."""
    projections, share = finder.views.projections, RECEIVED_WEIGHT if search else 1.0
    received = unsearched(projections, size, share)
    for hypothesis in received:
        index, side, weight = hypothesis.projection, hypothesis.side, hypothesis.weight
        if hypothesis.upright:
            yield Place(index, finder.views.placed(hypothesis.geometry), UNMOVED_WEIGHT * weight, side, False)
            weight *= 1 - UNMOVED_WEIGHT
        attempt = finder.attempt(hypothesis)
        if hypothesis.upright or not attempt.mark.upright:  # an upright one was read already
            yield Place(index, attempt.geometry, weight, side, False, area=PILOT_AREA, pilot=attempt.mark)
    if not search:
        return
    for number, stage in enumerate(searched(projections, 1 - RECEIVED_WEIGHT - KEY_WEIGHT)):
        for hypothesis in stage:
            attempt = finder.attempt(hypothesis)
            if attempt.promising:
                attempt = finder.refined(attempt)
                index, side, mark = hypothesis.projection, hypothesis.side, attempt.mark
                yield Place(index, attempt.geometry, hypothesis.weight, side, True, area=PILOT_AREA, pilot=mark)
        if number == 0 and layer is not None:
            yield from by_key(finder, layer, list(dict.fromkeys(each.geometry for each in received)))


def by_key(finder: PilotSearch, layer: SecretLayer, geometries: list[Geometry | None]) -> Iterator[Place]:
    """The peaks of the matched filter: in all projections added up, then upright in luminance alone.

    A small crop of a photo may carry its watermark in one of the projections only, and noise in the other.
    """
    views = finder.views
    luminance = len(views.projections) - 1
    every = range(luminance + 1)
    for geometry in geometries:
        start = views.placed(geometry)
        seen = [views.rectified(index, start, RECEIVED_SIDE, shared=True) for index in every]
        corner = Geometry.shift(-seen[0].x0, -seen[0].y0)
        w = torch.stack([each.y[0, 0] for each in seen])
        share = KEY_WEIGHT / len(geometries)
        sources: list[tuple[Tensor, int, Tensor, Sequence[int], float]] = [
            (w.sum(0), KEY_PEAKS, ORIENTATIONS, every, 1 - UPRIGHT_WEIGHT if luminance else 1.0)
        ]
        if luminance:
            sources.append((w[luminance], UPRIGHT_PEAKS, ORIENTATIONS[:1], [luminance], UPRIGHT_WEIGHT))
        for image, count, orientations, indices, part in sources:
            for peak in peaks(image, layer, count, orientations):
                place = views.placed(peak.geometry @ corner @ start)
                weight, tries = share * part / (count * len(indices)), float(len(orientations))
                for index in indices:
                    yield Place(index, place, weight, RECEIVED_SIDE, False, tries, AREA / PERIOD**2, by_key=True)


def tiles_at(views: Views, place: Place) -> tuple[Tensor, int, int]:
    """The coefficients of all tiles at a place, (rows, columns, 364), and the row and column of the first."""
    rectified = views.rectified(place.projection, place.geometry, place.side, shared=True)
    placed = placed_tiles(rectified.y, rectified.x0, rectified.y0)
    return shifted(coefficients(placed.tiles[0]), placed.x, placed.y), placed.row, placed.column


def deep_places(finder: PilotSearch, layer: SecretLayer, progress: Callable[[float], None] | None) -> list[Place]:
    """The highest peaks of the matched filter under all rotations and scales of the deep search."""
    views, found = finder.views, []
    size = size_of(views.projections)
    for number, angle in enumerate(DEEP_ANGLES):
        turned = Geometry.rotation(angle, size)
        for scale in DEEP_SCALES:
            start = views.placed(turned @ Geometry.scale(1 / scale))
            seen = [views.rectified(index, start, DEEP_SIDE) for index in range(len(views.projections))]
            w = torch.stack([each.y[0, 0] for each in seen]).sum(0)
            peak = peaks(w, layer, 1, ORIENTATIONS[:1])[0]
            corner = Geometry.shift(-seen[0].x0, -seen[0].y0)
            found.append((peak.height, views.placed(peak.geometry @ corner @ start)))
        if progress is not None:
            progress((number + 1) / len(DEEP_ANGLES))
    found.sort(key=lambda pair: -pair[0])
    count = len(views.projections)
    tries, area = float(len(found)), AREA / PERIOD**2
    return [
        Place(index, geometry, DEEP_WEIGHT / count, RECEIVED_SIDE // 4, True, tries, area)
        for _, geometry in found[:DEEP_PEAKS]
        for index in range(count)
    ]


def _later(places: Callable[[], list[Place]]) -> Iterator[Place]:
    """The places of a search that starts when the first is requested."""
    yield from places()


class Attempts:
    """Makes and refines attempts on one image, (1, 3, H, W)."""

    def __init__(self, finder: PilotSearch, layer: SecretLayer):
        self.views = finder.views
        self.layer = layer
        self.sync = layer.sync.float()

    def attempt(self, place: Place) -> Attempt:
        """Read at a place that is known up to whole tiles."""
        values, row, column = tiles_at(self.views, place)
        pilot = None if place.pilot is None else place.pilot.signed
        found = self.layer.find(values, place.tries, place.area, pilot)
        moved = Geometry.shift((found.column - column) * TILE + found.x, (found.row - row) * TILE + found.y)
        tile = -found.tile if found.negative else found.tile
        return Attempt(
            place,
            tile,
            self._placed(moved @ place.geometry),
            found.length,
            found.negative,
            found.cosine,
            found.log_sync,
            self.layer.log10_presence(tile, found.log_sync, found.length),
            place.side,
            place.projection,
        )

    def _placed(self, geometry: Geometry) -> Geometry:
        return self.views.placed(geometry, PERIOD * TILE)

    def tile(self, attempt: Attempt, projection: int, geometry: Geometry, side: int) -> Tensor:
        """The average tile of an attempt under another geometry, (364,)."""
        tile = self.layer.average(self.views.rectified(projection, geometry, side))[0]
        return -tile if attempt.negative else tile

    def refine(self, attempt: Attempt, side: int, pattern: Tensor | None = None) -> Attempt:
        """Refine an attempt's geometry on a centre of `side` pixels; the geometry is kept if that does not help.

        Args:
            attempt: The attempt.
            side: Pixels.
            pattern: (364,), whose cosine is raised; None for the sync pattern.
        """
        covered = covered_tiles(self.views.rectified(attempt.projection, attempt.geometry, side))
        if not len(covered.tiles):  # flat, or outside of the image
            return replace(attempt, still=True)
        tiles = self.layer.each_without_phases(covered.tiles, covered.places)
        tiles = -tiles if attempt.negative else tiles
        pattern = self.sync[attempt.count] if pattern is None else pattern
        geometry, tile = attempt.geometry, self.tile(attempt, attempt.projection, attempt.geometry, side)
        cosine = float(F.cosine_similarity(tile, pattern, dim=0))
        for perspective in (False, True):
            correction, gain = refined_geometry(tiles, covered.centres, pattern, perspective)
            if gain < PREDICTED_GAIN or not moves(correction, covered.centres):
                continue
            changed = self._placed(correction @ attempt.geometry)
            new = self.tile(attempt, attempt.projection, changed, side)
            similarity = float(F.cosine_similarity(new, pattern, dim=0))
            if similarity > cosine * GAIN:
                geometry, tile, cosine = changed, new, similarity
        # The refinement has maximised the sync cosine: its p-value stays that of the tile before.
        log10_p = self.layer.log10_presence(tile, attempt.log_sync, attempt.count)
        still = geometry is attempt.geometry and side >= REFINED_SIDE
        return replace(attempt, tile=tile, geometry=geometry, cosine=cosine, log10_p=log10_p, side=side, still=still)

    def settled(self, found: Attempt) -> Attempt:
        """Refine the geometry of a detected watermark on a growing centre until it does not change.

        The pattern includes the payload with the bits read so far, which doubles the evidence. Then take the projection
        with the larger sync cosine. The p-value stays that of the detection.
        """
        log10_p = found.log10_p
        for _ in range(SETTLING):
            if found.still:
                break
            whole = found.side >= REFINED_SIDE
            better = self.refine(found, found.side if whole else _wider(found.side), self._estimated(found))
            if whole and better.cosine <= found.cosine * GAIN:
                break
            found = better
        found = replace(found, cosine=float(F.cosine_similarity(found.tile, self.sync[found.count], dim=0)))
        for projection in set(range(len(self.views.projections))) - {found.projection}:
            tile = self.tile(found, projection, found.geometry, found.side)
            cosine = float(F.cosine_similarity(tile, self.sync[found.count], dim=0))
            if cosine > found.cosine:
                found = replace(found, projection=projection, tile=tile, cosine=cosine)
        return replace(found, log10_p=log10_p)

    def _estimated(self, attempt: Attempt) -> Tensor:
        """The sync pattern and the payload with the attempt's bits, (364,)."""
        payload = self.layer.payload[: BIT_COUNTS[attempt.count]].to(attempt.tile)
        return self.sync[attempt.count] + F.normalize((payload @ attempt.tile).sign() @ payload, dim=0)


def _wider(side: int) -> int:
    return min(REFINED_SIDE, round(GROWTH * side))


def read(
    image: Tensor,
    layer: SecretLayer,
    *,
    search: bool = True,
    fpr: float = 1e-6,
    size: int | None = None,
    at: Geometry | None = None,
    deep: bool = False,
    progress: Callable[[float], None] | None = None,
) -> Reading:
    """Find a watermark in an image (1, 3, H, W) and read its bits; the message is not decoded. See `Extractor.read`.

    Args:
        image, layer, search, fpr, size: See there.
        deep, progress: See there.
        at: A geometry that is tried first and has half of the false-positive rate: that of a public layer.
    """
    start, limit = time.perf_counter(), log10_rate(fpr)
    finder = PilotSearch(image)
    attempts = Attempts(finder, layer)
    best: Attempt | None = None
    likeliest: Attempt | None = None
    tried = 0

    def holds(attempt: Attempt, times: float) -> bool:
        return attempt.total_log10_p <= times * limit

    def is_final(attempt: Attempt) -> bool:
        # The key found it, and a refinement leaves it as it is: a search for the pilot will not find a better geometry.
        found = attempt.place.by_key and holds(attempt, 1)
        return found and (attempt.still or attempts.refine(attempt, RECEIVED_SIDE).still)

    tried_places: Iterator[Place] = places(finder, layer, size, search)
    if at is not None:
        count = len(finder.views.projections)
        geometry = finder.views.placed(at)
        first = [Place(index, geometry, 0.5 / count, RECEIVED_SIDE, True) for index in range(count)]
        tried_places = chain(first, (replace(each, weight=each.weight / 2) for each in tried_places))
    if deep:
        before = (replace(each, weight=each.weight * (1 - DEEP_WEIGHT)) for each in tried_places)
        tried_places = chain(before, _later(lambda: deep_places(finder, layer, progress)))
    for place in tried_places:
        attempt = attempts.attempt(place)
        tried += 1
        if attempt.log_sync < PROMISING:
            whole = not place.searched and not holds(attempt, SURE)
            refined = attempts.refine(attempt, RECEIVED_SIDE if whole else place.side)
            # In a small crop a refinement may fit noise: the payload, which took no part in it, decides.
            better = min(attempt, refined, key=lambda one: one.log10_p)
            attempt = replace(better, log10_p=better.log10_p + math.log10(2))
        if best is None or attempt.total_log10_p < best.total_log10_p:
            best = attempt
        if likeliest is None or attempt.likely < likeliest.likely:
            likeliest = attempt
        if holds(best, CLEAR) or (best is attempt and is_final(best)):
            break
    assert best is not None and likeliest is not None
    log10_p = best.total_log10_p
    if log10_p > limit:
        best = likeliest
    elif best.place.searched or not holds(best, SURE):
        best = attempts.settled(best)
    return _reading(best, layer, log10_p, limit, tried, time.perf_counter() - start)


def _reading(best: Attempt, layer: SecretLayer, log10_p: float, limit: float, tried: int, seconds: float) -> Reading:
    tile = best.tile.double()
    num_bits = BIT_COUNTS[best.count]
    logits = (layer.payload[:num_bits] @ tile / tile.norm().clamp(min=1e-12) * math.sqrt(num_bits)).float()
    return Reading(
        detected=log10_p <= limit,
        log10_p=log10_p,
        logits=logits,
        message=Decoded(),
        seconds=seconds,
        geometry=best.geometry,
        pose=pose_of(best.geometry, TILE),
        searched=best.place.searched,
        tried=tried,
        tile=best.tile,
        negative=best.negative,
    )
