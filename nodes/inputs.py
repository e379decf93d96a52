"""Inputs and outputs that several nodes share, and the settings and generators made from their values."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..onrw_core.attacks import MIXES
from ..onrw_core.extractors.base import Extractor
from ..onrw_core.stages.composition import MODES
from ..onrw_core.stages.noise_optimisation import PRESETS, Settings, preset_for
from ..onrw_core.stages.quality import DEFAULT_QUALITY, HIGHEST, LOWEST
from .schemas import advanced
from .sockets import ExtractorType, KeyType

__all__ = [
    "AS_OPTIMISED",
    "AS_PRESET",
    "CUSTOM",
    "DEFAULT_PRESET",
    "balanced",
    "composed_outputs",
    "composition",
    "extractor",
    "generator_for",
    "inverted_model",
    "key",
    "mark_mask",
    "marking_inputs",
    "marking_settings",
    "preset",
    "prompts_again",
    "quality_of",
    "seed",
    "strength",
    "target_psnr",
    "vae",
]

DEFAULT_PRESET = "fast"
DEFAULT_MIX = "all"
MAX_SEED = 0xFFFFFFFFFFFFFFFF
AS_PRESET, AS_OPTIMISED, CUSTOM = "as preset", "as optimised", "custom"
DEFAULT_STRENGTH = "balanced"
STRENGTHS = {"subtle": 5.0, DEFAULT_STRENGTH: 0.0, "strong": -10.0}
"""SSIMULACRA2 scores above that of the preset."""
STAGED = [name for name, settings in PRESETS.items() if settings.space == "noise"]
"""The presets whose stages are nodes."""


def seed(tooltip: str) -> io.Input:
    """The seed of random draws; it stays as it is from run to run."""
    return advanced(io.Int.Input, "seed", default=0, min=0, max=MAX_SEED, control_after_generate=False, tooltip=tooltip)


def generator_for(seed: int, index: int = 0) -> torch.Generator:
    """The random generator of image number `index` of a batch."""
    return torch.Generator().manual_seed((seed + index) & MAX_SEED)


def preset(tooltip: str) -> io.Input:
    """The choice of a preset of the stages."""
    return io.Combo.Input("preset", options=STAGED, default=DEFAULT_PRESET, tooltip=tooltip)


def strength(optimised: str = "") -> tuple[io.Input, io.Input]:
    """How strong a watermark is, as a choice and as a number.

    Args:
        optimised: What the choice `AS_OPTIMISED` means, which is the default then; "" for nodes without it.
    """
    first = [AS_OPTIMISED] if optimised else []
    also = f" {AS_OPTIMISED}: {optimised}." if optimised else ""
    return (
        io.Combo.Input(
            "strength",
            options=[*first, *STRENGTHS, CUSTOM],
            default=AS_OPTIMISED if optimised else DEFAULT_STRENGTH,
            tooltip="How strong the watermark is. balanced: not visible at normal viewing. subtle: for flat drawings "
            "and skies. strong: survives more, and may be visible from close by. custom: the number in `quality`."
            f"{also}",
        ),
        advanced(
            io.Float.Input,
            "quality",
            default=DEFAULT_QUALITY,
            min=LOWEST,
            max=HIGHEST,
            step=1.0,
            tooltip="For the strength custom: quality of the marked image as a SSIMULACRA2 score (subtle is 95, "
            "balanced 90, strong 80; with the preset endure 75, 70, 60). A higher score is less visible and less "
            "robust.",
        ),
    )


def quality_of(strength: str, quality: float, balanced: float) -> float | None:
    """The SSIMULACRA2 score of a strength; None for `AS_OPTIMISED`.

    Args:
        strength, quality: The widgets of these names.
        balanced: The score of the preset.
    """
    if strength == AS_OPTIMISED:
        return None
    return quality if strength == CUSTOM else balanced + STRENGTHS[strength]


def balanced(preset: str) -> float:
    """The SSIMULACRA2 score of the strength balanced with a preset."""
    return PRESETS[preset].quality or DEFAULT_QUALITY


def target_psnr() -> io.Input:
    """A PSNR in dB instead of the strength; 0 for none."""
    return advanced(
        io.Float.Input,
        "target_psnr",
        default=0.0,
        min=0.0,
        max=60.0,
        step=0.5,
        tooltip="PSNR of the marked image in dB, used instead of the strength. 0: not used. Third-party decoders are "
        "marked for at 42 dB.",
    )


def key() -> io.Input:
    """The key, where it may be that of the installation."""
    return KeyType.Input(
        "key", optional=True, tooltip="From Watermark Key; without it, the key of this installation is used."
    )


def extractor() -> io.Input:
    """The extractor, where it may be the built-in one."""
    return ExtractorType.Input(
        "extractor",
        optional=True,
        tooltip="From Load Watermark Extractor, for third-party decoders; without it, the built-in extractor is used.",
    )


def composition(name: str, *others: str) -> io.Input:
    """The choice of a composition mode, after other options; the first option is the default."""
    options = [*others, *MODES]
    tooltip = "residual: adds the change to the original. mask: replaces the original by the decoded image."
    return io.Combo.Input(name, options=options, default=options[0], tooltip=tooltip)


def composed_outputs() -> tuple[io.Output, io.Output]:
    """The marked image, and the residual."""
    return (
        io.Image.Output("marked", "marked", tooltip="The marked image, of the size of the original."),
        io.Image.Output("residual", "residual", tooltip="The change, amplified ten times, on mid-grey."),
    )


def inverted_model() -> io.Input:
    """The MODEL of an inversion."""
    return io.Model.Input("model", tooltip="The model that the inversion was made with.")


def vae() -> io.Input:
    """The VAE of a MODEL."""
    return io.Vae.Input("vae", tooltip="The VAE of the model.")


def prompts_again() -> list[io.Input]:
    """Prompts that replace those of an inversion."""
    return [
        io.Conditioning.Input(
            name,
            optional=True,
            tooltip=f"Replaces the {name} prompt of the inversion. Required if the inversion was loaded from a file "
            "and that prompt has a ControlNet, hooks or GLIGEN.",
        )
        for name in ("positive", "negative")
    ]


def mark_mask() -> io.Input:
    """The area to mark."""
    return io.Mask.Input("mask", optional=True, tooltip="The area that may be marked; without a mask, everywhere.")


def marking_inputs() -> list[io.Input]:
    """The widgets of the settings by which an image is marked."""

    usual = PRESETS[DEFAULT_PRESET]

    def number(kind: type[io.Int] | type[io.Float], name: str, low: int, high: int, tooltip: str) -> io.Input:
        return advanced(kind.Input, name, default=getattr(usual, name), min=low, max=high, step=1, tooltip=tooltip)

    return [
        preset(
            "fast: quick and robust. endure: robust to regeneration (img2img) as well, and more visible. paper: the "
            "published method. reference: the published code."
        ),
        *strength(),
        target_psnr(),
        advanced(
            io.Combo.Input,
            "tuning",
            options=[AS_PRESET, CUSTOM],
            default=AS_PRESET,
            tooltip="as preset: iterations, attacks and weights are those of the preset. custom: the numbers below.",
        ),
        number(
            io.Int,
            "iterations",
            1,
            10000,
            "For the tuning custom: largest number of optimisation steps; it stops early when the message is read "
            "reliably.",
        ),
        number(
            io.Int,
            "attacks",
            1,
            64,
            "For the tuning custom: random attacks (crops, JPEG, rotations, ...) per step that the watermark is "
            "optimised against.",
        ),
        number(io.Float, "message_weight", 0, 10000, "For the tuning custom: weight of the message loss."),
        number(
            io.Float,
            "image_weight",
            0,
            10000,
            "For the tuning custom: weight of the distance from the original, in the composition mode mask.",
        ),
        number(
            io.Float,
            "attention_weight",
            0,
            10000,
            "For the tuning custom: weight of the self-attention constraint in the loss; 0 is faster.",
        ),
        seed("Seed of the random attacks. Image number n of a batch uses seed + n."),
        advanced(
            io.Combo.Input,
            "mix",
            options=list(MIXES),
            default=DEFAULT_MIX,
            optional=True,
            tooltip="Kinds of attacks that are drawn. all: every kind (upright for third-party decoders, which cannot "
            "undo rotations). geometric: crops, rotations, scaling. values: JPEG, noise, tones. upright: no large "
            "rotations, no distortions. none: no attack. regeneration: every kind, and regeneration of the image by "
            "the model, which takes longer.",
        ),
    ]


def marking_settings(
    preset: str,
    extractor: Extractor,
    *,
    strength: str = DEFAULT_STRENGTH,
    quality: float = DEFAULT_QUALITY,
    target_psnr: float = 0.0,
    tuning: str = AS_PRESET,
    mix: str = DEFAULT_MIX,
    **tuned: float,
) -> Settings:
    """The settings of a preset, overridden by those of the extractor, then by the widgets that are set.

    Args:
        preset: One of `PRESETS`.
        extractor: The extractor; its `marking` may ask for a PSNR, and the strength is not used then.
        strength, quality, target_psnr, tuning, mix: The widgets of these names.
        tuned: Settings that are those of the preset unless `tuning` is custom: iterations, attacks and weights.
    """
    changes: dict[str, float | str | None] = {**tuned} if tuning == CUSTOM else {}
    if "target_psnr" not in extractor.marking:
        changes["quality"] = quality_of(strength, quality, balanced(preset))
    changes["target_psnr"] = target_psnr or None
    changes["mix"] = None if mix == DEFAULT_MIX else mix
    return preset_for(preset, extractor).with_(**changes)
