"""Attack suites, on which figures are measured, and training mixes, which the optimisation draws from.

The suites are fixed lists (or fixed ranges). The training mix draws from continuous ranges that are wider than those
of the suites and share no constant with them, so that no figure is measured on the very attacks of the optimisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .base import ATTACKS, Attack, Attacked, Chain, attack, chain, or_default, parse, uniform

__all__ = ["MIX", "MIXES", "SUITES", "Range", "TrainingMix", "suite", "training_mix"]

SUITES: dict[str, tuple[str, ...]] = {
    "onrw12": (
        "crop=.1",
        "crop=.5",
        "rotation=25",
        "rotation=90",
        "resize=.3",
        "resize=.7",
        "brightness=1.5",
        "brightness=2",
        "jpeg=80",
        "jpeg=50",
        "noise=.05",
        "blur=1",
    ),
    "extended": (
        "uniform=10",
        "salt-pepper=.01",
        "poisson=255",
        "mean=3",
        "contrast=.5",
        "contrast=1.5",
        "saturation=0",
        "saturation=2",
        "hue=20",
        "sharpness=2",
        "gamma=.67",
        "gamma=1.5",
        "perspective=.1",
        "flip",
        "aspect=.8",
        "text=.1",
        "border=.1",
        "webp=80",
        "webp=50",
        "screenshot=.75",
        "screenshot-border=.75",
        "crop=.5+brightness=1.5+jpeg=80",
    ),
}

QUARTER_TURNS = (90, 180, 270)


@dataclass(frozen=True)
class Range:
    """An attack whose strength is drawn uniformly from [low, high).

    Attributes:
        name: Key of `ATTACKS`.
        low: Least strength.
        high: Greatest strength.
        weight: Relative probability within a mix.
    """

    name: str
    low: float = 0.0
    high: float = 0.0
    weight: float = 1.0

    def draw(self, generator: torch.Generator) -> Attack:
        return attack(self.name, uniform(self.low, self.high, generator) if self.high > self.low else None)


class Drawn(Protocol):
    """An entry of a training mix: a `Range`, or a `RegenerationRange`."""

    @property
    def name(self) -> str: ...

    @property
    def weight(self) -> float: ...

    def draw(self, generator: torch.Generator) -> Attack: ...


# The kinds of onrw12 with other strengths and positions; resize by .5 to 1.2 of the side.
RANDOM_RANGES = (
    Range("crop-random", 0.1, 0.5),
    Range("crop-random", 0.5, 0.9),
    Range("rotation", -45, 45),
    Range("resize", 0.25, 0.64),
    Range("resize", 0.64, 1.44),
    Range("brightness", 0.7, 1.3),
    Range("brightness", 1.3, 2.0),
    Range("jpeg", 40, 65),
    Range("jpeg", 65, 90),
    Range("noise", 0.02, 0.06),
    Range("blur", 0.5, 1.3),
)

# The optimisation draws from these. It undoes geometry exactly, so geometric attacks weigh less than destructive ones.
# Of the weights, 12.4 in all, 9.5 belong to the kinds of "onrw12", 2.4 to those that "extended" adds, and .5 to none.
# They were chosen, not tuned.
MIX = (
    Range("identity", weight=0.5),
    Range("crop-random", 0.07, 0.95, weight=1.5),
    Range("rotation", -180, 180, weight=1.0),
    Range("resize", 0.18, 1.6, weight=1.0),
    Range("aspect", 0.6, 1.6, weight=0.3),
    Range("perspective", 0.02, 0.2, weight=0.3),
    Range("brightness", 0.55, 2.2, weight=1.5),
    Range("contrast", 0.4, 1.8, weight=0.3),
    Range("saturation", 0.0, 2.2, weight=0.3),
    Range("gamma", 0.55, 1.8, weight=0.3),
    Range("hue", -40, 40, weight=0.2),
    Range("jpeg", 33, 97, weight=2.0),
    Range("webp", 35, 95, weight=0.5),
    Range("noise", 0.01, 0.08, weight=1.5),
    Range("blur", 0.3, 1.6, weight=1.0),
    Range("sharpness", 0.3, 2.6, weight=0.2),
)

# Attacks that decoders without a geometry search cannot undo.
TURNING = frozenset({"rotation", "aspect", "perspective"})
# Attacks that a watermark for such decoders survives only if the optimisation draws them often. Weights were chosen,
# not tuned.
UPRIGHT = (
    Range("rotation", -35, 35, weight=4.0),
    Range("resize", 0.18, 0.6, weight=2.0),
    Range("brightness", 1.2, 2.3, weight=1.5),
)
GEOMETRIC = frozenset({"crop-random", "rotation", "resize", "aspect", "perspective"})


def suite(name: str, generator: torch.Generator | None = None) -> list[Attack]:
    """The attacks of a suite: "onrw12", "onrw12-random" or "extended".

    Args:
        name: Which suite.
        generator: Draws the strengths of "onrw12-random"; pass a generator to the attacks as well, for their positions.

    Raises:
        ValueError: Unknown name, or "onrw12-random" without a generator.
    """
    if name in SUITES:
        return [parse(text) for text in SUITES[name]]
    if name != "onrw12-random":
        raise ValueError(f"unknown suite {name!r}; choose from {', '.join([*SUITES, 'onrw12-random'])}")
    if generator is None:
        raise ValueError("suite 'onrw12-random' draws its strengths at random; pass a seeded torch.Generator")
    attacks = [entry.draw(generator) for entry in RANDOM_RANGES]
    turn = QUARTER_TURNS[int(torch.randint(len(QUARTER_TURNS), (), generator=generator))]
    return [*attacks, attack("rotation", turn)]


@dataclass(frozen=True)
class TrainingMix:
    """Random attacks for the optimisation.

    Attributes:
        ranges: The entries to draw from.
        combined: Probability that a non-geometric attack follows a geometric one, as on websites. With .3, not 0, the
            lower decile of the signed logits under five such pairs rose from .220 to .246, and stayed at .321 under
            single attacks (48 bits, preset fast, 12 iterations, 3 training photos at 256 px); .7 gave .243 and .326.
        window: Pixels kept of an attack's result, a crop at a random position; None for all.
    """

    ranges: tuple[Drawn, ...] = MIX
    combined: float = 0.3
    window: int | None = None

    def draw(self, generator: torch.Generator | None, count: int = 1) -> list[Attack]:
        """Draw `count` attacks, of different kinds while there are enough."""
        generator = or_default(generator)
        picked = _pick(self.ranges, count, generator)
        drawn = [self._combine(entry, generator) for entry in picked]
        return drawn if self.window is None else [_Window(str(whole), 0.0, (whole,), self.window) for whole in drawn]

    def _combine(self, entry: Drawn, generator: torch.Generator) -> Attack:
        first = entry.draw(generator)
        others = tuple(other for other in self.ranges if other.name not in GEOMETRIC)
        if entry.name not in GEOMETRIC or not others or uniform(0, 1, generator) >= self.combined:
            return first
        return chain([first, _pick(others, 1, generator)[0].draw(generator)])


@dataclass(frozen=True)
class _Window(Chain):
    """An attack whose result is cropped to at most `pixels` pixels, at a random position."""

    pixels: int = 0

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Attacked:
        result = super().__call__(images, generator)
        area = result.images.shape[-2] * result.images.shape[-1]
        if area <= self.pixels:
            return result
        share = max(self.pixels / area, ATTACKS["crop-random"].low)
        part = attack("crop-random", share)(result.images, generator)
        return Attacked(part.images, result.geometry @ part.geometry)


# The kinds of `MIX` in each training mix; "regeneration" adds the regeneration attacks.
REGENERATION = "regeneration"
MIXES = {
    "all": tuple(entry.name for entry in MIX),
    REGENERATION: tuple(entry.name for entry in MIX),
    "upright": tuple(entry.name for entry in MIX if entry.name not in TURNING),
    "geometric": ("identity", *sorted(GEOMETRIC)),
    "values": tuple(entry.name for entry in MIX if entry.name not in GEOMETRIC),
    "none": ("identity",),
}


def training_mix(name: str = "all", made: Sequence[Drawn] = (), window: int | None = None) -> TrainingMix:
    """One of `MIXES`: "all", "regeneration" (all and the regeneration attacks), "geometric" (crop, rotation,
    resize, aspect, perspective), "upright" (no large rotation or distortion; more small rotations, reductions and
    brightening), "values" (JPEG, noise, filters, tones) or "none".

    Args:
        name: Key of `MIXES`.
        made: The regeneration attacks, see `onrw_core.attacks.regeneration`; used by "regeneration" alone.
        window: As `TrainingMix.window`.

    Raises:
        ValueError: Unknown name, or "regeneration" without regeneration attacks.
    """
    if name not in MIXES:
        raise ValueError(f"unknown attack mix {name!r}; choose from {', '.join(MIXES)}")
    if name == REGENERATION and not made:
        raise ValueError(f"attack mix {name!r} needs the regeneration attacks of a model; pass them as `made`")
    kinds = tuple(entry for entry in MIX if entry.name in MIXES[name])
    extra: dict[str, tuple[Drawn, ...]] = {REGENERATION: tuple(made), "upright": UPRIGHT}
    return TrainingMix((*kinds, *extra.get(name, ())), window=window)


def _pick(ranges: tuple[Drawn, ...], count: int, generator: torch.Generator) -> list[Drawn]:
    weights = torch.tensor([entry.weight for entry in ranges], dtype=torch.float64)
    picked: list[Drawn] = []
    while len(picked) < count:
        batch = min(count - len(picked), len(ranges))
        picked += [ranges[i] for i in torch.multinomial(weights, batch, generator=generator).tolist()]
    return picked
