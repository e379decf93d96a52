"""The attack, its registry and its text form (``jpeg=50``, ``crop=.5+jpeg=80``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..geometry import Geometry
from ..rounding import round_8bit

__all__ = [
    "ATTACKS",
    "Attack",
    "Attacked",
    "Chain",
    "Kind",
    "attack",
    "chain",
    "or_default",
    "parse",
    "register",
    "uniform",
]


@dataclass(frozen=True)
class Attacked:
    """What an attack leaves.

    Attributes:
        images: (B, 3, H', W') in [0, 1], multiples of 1/255.
        geometry: Takes coordinates of `images` to coordinates of the attack's input.
    """

    images: Tensor
    geometry: Geometry


Function = Callable[[Tensor, float, "torch.Generator | None"], "Tensor | Attacked"]


@dataclass(frozen=True)
class Kind:
    """An entry of the registry.

    Attributes:
        function: (images, strength, generator) -> images where they were, or `Attacked`.
        default: Strength when none is given.
        low: Least valid strength.
        high: Greatest valid strength.
        unit: What the strength counts; "" for an attack without strength.
        description: One line, fit for a tooltip.
    """

    function: Function
    default: float
    low: float
    high: float
    unit: str
    description: str


ATTACKS: dict[str, Kind] = {}


def register(
    name: str, description: str, *, default: float = 0.0, low: float = 0.0, high: float = 0.0, unit: str = ""
) -> Callable[[Function], Function]:
    """Put a function into `ATTACKS`."""

    def enter(function: Function) -> Function:
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
        """Attack pictures.

        Args:
            images: (B, 3, H, W) in [0, 1], float32.
            generator: Source of what is random in the attack (noise; positions, shared by the batch); without
                one, the same draw every time.

        Returns:
            The result, rounded to 8 bit straight-through, and where it lies in the input.
        """
        result = ATTACKS[self.name].function(images, self.strength, generator)
        if isinstance(result, Tensor):
            result = Attacked(result, Geometry.identity())
        return Attacked(round_8bit(result.images), result.geometry)

    def __str__(self) -> str:
        return f"{self.name}={self.strength:g}" if ATTACKS[self.name].unit else self.name


@dataclass(frozen=True)
class Chain(Attack):
    """Attacks one after another.

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
    """Attacks one after another as one; a single one is returned as it is.

    Raises:
        ValueError: No attack given.
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
    """The generator given, or a fresh one with a fixed seed."""
    return torch.Generator().manual_seed(0) if generator is None else generator


def uniform(low: float, high: float, generator: torch.Generator) -> float:
    """One number from [low, high)."""
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()
