"""Attacks, their registry and their text form (``jpeg=50``, ``crop=.5+jpeg=80``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypedDict, TypeVar

import torch
from torch import Tensor

from ..imaging.geometry import Geometry
from ..imaging.rounding import round_8bit

__all__ = [
    "ATTACKS",
    "Attack",
    "Attacked",
    "Chain",
    "Kind",
    "Limits",
    "attack",
    "chain",
    "or_default",
    "parse",
    "register",
    "uniform",
]


@dataclass(frozen=True)
class Attacked:
    """The result of an attack.

    Attributes:
        images: (B, 3, H', W') in [0, 1], multiples of 1/255.
        geometry: Maps coordinates of `images` to coordinates of the attack's input.
    """

    images: Tensor
    geometry: Geometry


Function = Callable[[Tensor, float, "torch.Generator | None"], "Tensor | Attacked"]
F = TypeVar("F", bound=Function)


@dataclass(frozen=True)
class Kind:
    """An entry of the registry.

    Attributes:
        function: (images, strength, generator) -> images whose pixels have not moved, or `Attacked`.
        default: Strength when none is given.
        low: Least valid strength.
        high: Greatest valid strength.
        unit: Unit of the strength; "" for an attack without strength.
        description: One line, as in a tooltip.
    """

    function: Function
    default: float
    low: float
    high: float
    unit: str
    description: str


class Limits(TypedDict):
    """Range and unit of a strength, for attacks that share them."""

    low: float
    high: float
    unit: str


ATTACKS: dict[str, Kind] = {}


def register(
    name: str, description: str, *, default: float = 0.0, low: float = 0.0, high: float = 0.0, unit: str = ""
) -> Callable[[F], F]:
    """Decorator that puts a function into `ATTACKS`."""

    def enter(function: F) -> F:
        ATTACKS[name] = Kind(function, default, low, high, unit, description)
        return function

    return enter


@dataclass(frozen=True)
class Attack:
    """One attack at one strength; call it on images. ``str()`` gives the text that `parse` reads.

    Attributes:
        name: Key of `ATTACKS`.
        strength: In the unit of the registry's entry.
    """

    name: str
    strength: float

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Attacked:
        """Attack images.

        Args:
            images: (B, 3, H, W) in [0, 1], float32.
            generator: Source of the attack's random numbers (noise; positions, shared by the batch). Without a
                generator every call draws the same numbers.

        Returns:
            The result, rounded to 8 bit straight-through, and its geometry.
        """
        result = ATTACKS[self.name].function(images, self.strength, generator)
        if isinstance(result, Tensor):
            result = Attacked(result, Geometry.identity())
        return Attacked(round_8bit(result.images), result.geometry)

    def __str__(self) -> str:
        return f"{self.name}={self.strength:g}" if ATTACKS[self.name].unit else self.name


@dataclass(frozen=True)
class Chain(Attack):
    """Several attacks applied one after another.

    Attributes:
        parts: The attacks, first to last.
    """

    parts: tuple[Attack, ...] = ()

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Attacked:
        result = Attacked(images, Geometry.identity())
        for part in self.parts:
            step = part(result.images, generator)
            result = Attacked(step.images, result.geometry @ step.geometry)
        return result

    def __str__(self) -> str:
        return "+".join(map(str, self.parts))


def attack(name: str, strength: float | None = None) -> Attack:
    """The attack `name` at `strength` (default: the registry's).

    Raises:
        ValueError: Unknown name, strength out of range, or a strength for an attack that has none.
    """
    if name not in ATTACKS:
        raise ValueError(f"unknown attack {name!r}; choose from {', '.join(sorted(ATTACKS))}")
    kind = ATTACKS[name]
    if strength is None:
        return Attack(name, kind.default)
    if not kind.unit:
        raise ValueError(f"attack {name!r} takes no strength, got {strength:g}; write {name!r} alone")
    if not kind.low <= strength <= kind.high:
        valid = f"[{kind.low:g}, {kind.high:g}] ({kind.unit})"
        raise ValueError(f"strength {strength:g} of attack {name!r} is out of range; give one in {valid}")
    return Attack(name, float(strength))


def chain(attacks: Sequence[Attack]) -> Attack:
    """Several attacks applied one after another, as one attack; a single attack is returned unchanged.

    Raises:
        ValueError: `attacks` is empty.
    """
    if not attacks:
        raise ValueError("a chain needs at least one attack; use 'identity' for none")
    if len(attacks) == 1:
        return attacks[0]
    return Chain("+".join(part.name for part in attacks), 0.0, tuple(attacks))


def parse(text: str) -> Attack:
    """Read ``name``, ``name=strength`` or several joined by ``+``.

    Raises:
        ValueError: As `attack`, or a strength that is not a number.
    """
    parts = []
    for part in text.split("+"):
        name, equals, value = part.strip().partition("=")
        try:
            strength = float(value) if equals else None
        except ValueError:
            message = f"strength {value!r} in attack {text!r} is not a number; write e.g. jpeg=50"
            raise ValueError(message) from None
        parts.append(attack(name.strip(), strength))
    return chain(parts)


def or_default(generator: torch.Generator | None) -> torch.Generator:
    """`generator`, or a new generator with seed 0 if it is None."""
    return torch.Generator().manual_seed(0) if generator is None else generator


def uniform(low: float, high: float, generator: torch.Generator) -> float:
    """A uniform random number from [low, high)."""
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()
