"""ComfyUI's CONDITIONING lists and the core's `Conditioning`, in both directions.

A CONDITIONING is a list of [embeddings, options]. A plain one (a single entry with at most a pooled embedding) is fully
described by the core's record and survives a file; one with areas, masks, ControlNets or hooks keeps the list itself in
`Conditioning.opaque`, because only ComfyUI can apply it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from ...onrw_core.inversion import Inversion
from ...onrw_core.model import Conditioning, DiffusionModel
from .weights import clean

__all__ = [
    "CONTENT",
    "NEGATIVE",
    "POSITIVE",
    "WORD",
    "ComfyConditioning",
    "check_model",
    "from_comfy",
    "prepared",
    "to_comfy",
]

POSITIVE, NEGATIVE = "positive", "negative"  # the names under which ComfyUI prepares prompts for sampling
CONTENT, WORD = "onrw_content", "onrw_word"  # options in which ONRW_EncodePrompt stores the token spans
PLAIN = {"pooled_output", CONTENT, WORD}


@dataclass(frozen=True)
class ComfyConditioning(Conditioning):
    """A conditioning that knows which of the prepared prompts it is, also after `with_embeddings`."""

    role: str = POSITIVE


def from_comfy(conds: list, role: str) -> ComfyConditioning:
    """The core's view of a CONDITIONING list: the embeddings of its first entry, and the list where that is not all.

    Raises:
        ValueError: If the list is empty or holds no embeddings.
    """
    if not conds or conds[0][0] is None:
        raise ValueError(f"{role}: the conditioning is empty; connect the output of a text encoder")
    conds = clean(conds)
    embeddings, options = conds[0]
    plain = len(conds) == 1 and all(value is None for name, value in options.items() if name not in PLAIN)
    return ComfyConditioning(
        embeddings=embeddings.float(),
        pooled=options.get("pooled_output"),
        content=options.get(CONTENT),
        word=options.get(WORD),
        opaque=None if plain else conds,
        role=role,
    )


def to_comfy(conditioning: Conditioning) -> list[list[Any]]:
    """The CONDITIONING list that ComfyUI prepares for sampling."""
    if conditioning.opaque is not None:
        return conditioning.opaque
    options = {} if conditioning.pooled is None else {"pooled_output": conditioning.pooled}
    return [[conditioning.embeddings, options]]


def prepared(inversion: Inversion, positive: list | None = None) -> Inversion:
    """The record with prompts that ComfyUI can prepare, and the connected prompt in place of its own.

    Raises:
        ValueError: If the record was made with a prompt that a file cannot hold, and none is connected.
    """
    if positive is not None:
        prompt = from_comfy(positive, POSITIVE)
    elif inversion.requires_positive and inversion.positive.opaque is None:
        raise ValueError(
            "positive: this inversion was made with a ControlNet, areas or hooks, which a file cannot hold; connect "
            "the "
            "same conditioning to the input `positive`"
        )
    else:
        prompt = _with_role(inversion.positive, POSITIVE)
    null = None if inversion.null is None else _with_role(inversion.null, NEGATIVE)
    return replace(inversion, positive=prompt, null=null)


def check_model(inversion: Inversion, model: DiffusionModel) -> None:
    """Raise a ValueError unless the inversion was made with this model, LoRAs included."""
    if inversion.model != model.name:
        raise ValueError(
            f"model: the inversion was made with {inversion.model!r}, and this is {model.name!r}; connect the same "
            "model "
            "with the same LoRAs, or invert again"
        )


def _with_role(conditioning: Conditioning, role: str) -> ComfyConditioning:
    if isinstance(conditioning, ComfyConditioning):
        return conditioning
    shared = {f.name: clean(getattr(conditioning, f.name)) for f in fields(Conditioning)}
    return ComfyConditioning(**shared, role=role)
