"""ComfyUI's CONDITIONING lists and the core's `Conditioning`, in both directions.

A CONDITIONING is a list of [embeddings, options]. The core's record holds all of it that a file can hold: tensors,
numbers and texts. A list with other objects (ControlNets, hooks, GLIGEN) is kept in `Conditioning.opaque` too.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from ...onrw_core.diffusion.model import Conditioning, DiffusionModel
from ...onrw_core.stages.inversion import Inversion
from ...onrw_core.stages.nested import unsupported
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
    "with_embeddings",
]

POSITIVE, NEGATIVE = "positive", "negative"  # the names under which ComfyUI prepares prompts for sampling
CONTENT, WORD = "onrw_content", "onrw_word"  # options in which ONRW_EncodePrompt stores the token spans
POOLED = "pooled_output"
FURTHER = "onrw_further"  # option of the record for the entries after the first


@dataclass(frozen=True)
class ComfyConditioning(Conditioning):
    """A conditioning with its role among the prepared prompts, which `with_embeddings` keeps."""

    role: str = POSITIVE


def from_comfy(conds: list, role: str) -> ComfyConditioning:
    """The core's record of a CONDITIONING list.

    Raises:
        ValueError: If the list is empty or has no embeddings.
    """
    if not conds or conds[0][0] is None:
        raise ValueError(f"{role}: the conditioning is empty; connect the output of a text encoder")
    (embeddings, first), *further = conds = clean(conds)
    options = {name: value for name, value in first.items() if name not in (POOLED, CONTENT, WORD)}
    missing = tuple(dict.fromkeys(unsupported([options, further], "conditioning")))
    if further and not missing:
        options[FURTHER] = further
    return ComfyConditioning(
        embeddings=embeddings.float(),
        pooled=first.get(POOLED),
        content=first.get(CONTENT),
        word=first.get(WORD),
        options={name: value for name, value in options.items() if not [*unsupported({name: value})]},
        opaque=conds if missing else None,
        missing=missing,
        role=role,
    )


def to_comfy(conditioning: Conditioning) -> list[list[Any]]:
    """The CONDITIONING list that ComfyUI prepares for sampling."""
    if conditioning.opaque is not None:
        return conditioning.opaque
    options = dict(conditioning.options)
    further = options.pop(FURTHER, [])
    return [[conditioning.embeddings, {**options, POOLED: conditioning.pooled}], *further]


def with_embeddings(cond: dict[str, Any], before: Tensor, after: Tensor) -> dict[str, Any]:
    """A prepared cond with the embeddings `after` in place of `before`, (B, T, C); padding of ComfyUI's stays.

    Raises:
        ValueError: If the model changes embeddings when ComfyUI prepares them.
    """
    prepared = cond["model_conds"]["c_crossattn"]
    held, tokens = prepared.cond, before.shape[1]
    more = held.shape[1] - tokens
    sides = ((0, more), (more, 0))  # padding at the end, or in front
    for side in sides if more >= 0 and held.shape[-1] == before.shape[-1] else ():
        if torch.equal(
            held.narrow(1, side[0], tokens).float(), before.to(held.device).expand(len(held), -1, -1).float()
        ):
            around = held.narrow(1, 0, side[0]), held.narrow(1, side[0] + tokens, side[1])
            parts = [part.to(after).expand(len(after), -1, -1) for part in around]
            exchanged = type(prepared)(torch.cat([parts[0], after, parts[1]], 1))
            return {**cond, "model_conds": {**cond["model_conds"], "c_crossattn": exchanged}}
    raise ValueError(
        "method: this model changes the embeddings of a prompt before it uses them, so null embeddings cannot be "
        "exchanged; choose fixed-point"
    )


def prepared(inversion: Inversion, positive: list | None = None, negative: list | None = None) -> Inversion:
    """The inversion with prompts that ComfyUI can prepare; connected prompts replace its own.

    Raises:
        ValueError: If the record was made with a prompt that a file cannot contain, and none is connected.
    """
    given = {POSITIVE: positive, NEGATIVE: negative}
    prompts: dict[str, Any] = {}
    for role, own in ((POSITIVE, inversion.positive), (NEGATIVE, inversion.null)):
        if own is None:
            prompts[role] = None
        elif (again := given[role]) is not None:
            prompts[role] = from_comfy(again, role)
        elif own.incomplete:
            raise ValueError(
                f"{role}: this inversion was made with {', '.join(own.missing)}, which a file cannot contain; connect "
                f"the same conditioning to the input `{role}`"
            )
        else:
            prompts[role] = _with_role(own, role)
    return replace(inversion, positive=prompts[POSITIVE], null=prompts[NEGATIVE])


def check_model(inversion: Inversion, model: DiffusionModel) -> None:
    """Raise a ValueError unless the inversion was made with this model, LoRAs included."""
    if inversion.model != model.name:
        raise ValueError(
            f"model: the inversion was made with {inversion.model!r}, and this is {model.name!r}; connect "
            "the same model with the same LoRAs, or invert again"
        )


def _with_role(conditioning: Conditioning, role: str) -> ComfyConditioning:
    if isinstance(conditioning, ComfyConditioning):
        return conditioning
    shared = {f.name: clean(getattr(conditioning, f.name)) for f in fields(Conditioning)}
    return ComfyConditioning(**shared, role=role)
