"""Identity of a MODEL in one line for records: its family, its weights, and its patches.

Only the model that made an inversion reconstructs its image. The fingerprint is that of the weights in the checkpoint:
whether ComfyUI has merged a LoRA into them or adds it layer by layer depends on the free memory. LoRAs and patches have
a fingerprint of their own.
"""

from __future__ import annotations

import dis
import hashlib
import json
from collections.abc import Mapping
from types import FunctionType, MethodType
from typing import Any

from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ...onrw_core.diffusion.fingerprint import fingerprint
from .patches import name_of, patches

__all__ = ["identity"]

NETWORK = "diffusion_model"
UNCHANGING = ("optimized_attention_override",)
"""Places of patches that do not change the result of the computation."""


def identity(model: ModelPatcher) -> str:
    """Family and fingerprint of the weights; with LoRAs or patches also a plus sign and twelve digits of their hash."""
    prefix = f"{NETWORK}."
    original = {key.removeprefix(prefix): kept.weight for key, kept in model.backup.items() if key.startswith(prefix)}
    weights = {**_stored(model.model.diffusion_model), **original}
    name = f"{type(model.model.model_config).__name__}-{fingerprint(weights)}"
    added = [*_weight_patches(model), *_function_patches(model)]
    return name if not added else f"{name}+{hashlib.sha256(json.dumps(added).encode()).hexdigest()[:12]}"


def _stored(network: nn.Module) -> dict[str, Tensor]:
    """The weights of a network by name, quantised ones as they are stored."""
    parameters, found = dict(network.named_parameters()), {}
    for name, weight in network.state_dict().items():
        if weight.is_meta:  # ComfyUI-GGUF puts sizes in place of quantised weights, and one more for its working memory
            if name not in parameters:
                continue
            weight = parameters[name].as_subclass(Tensor)
        found[name] = weight
    return found


def _weight_patches(model: ModelPatcher) -> list[Any]:
    """LoRAs and other additions to weights: key, strengths, and a fingerprint of the tensors."""
    return [
        [key, strength, strength_model, fingerprint(dict(_tensors(value)))]
        for key in sorted(model.patches, key=str)
        for strength, value, strength_model, *_ in model.patches[key]
    ]


def _tensors(value: Any, name: str = "") -> list[tuple[str, Tensor]]:
    """Tensors of a weight patch, in nested tuples or an adapter's `weights`."""
    value = getattr(value, "weights", value)
    if isinstance(value, Tensor):
        return [(name, value)]
    items = (
        value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    )
    return [found for key, item in items for found in _tensors(item, f"{name}.{key}")]


def _function_patches(model: ModelPatcher) -> list[Any]:
    """Patches of the forward pass and of guidance, wrappers, and replaced objects such as the noise schedule."""
    found = [[place, *_description(patch)] for place, patch in patches(model.model_options) if place not in UNCHANGING]
    for kind, table in sorted(model.wrappers.items()):
        found += [[kind, *_description(wrapper)] for wrappers in table.values() for wrapper in wrappers]
    for place, part in sorted(model.object_patches.items()):
        if place != NETWORK:  # a compiled network is the same network
            state = fingerprint(part.state_dict()) if isinstance(part, nn.Module) else ""
            found.append([place, [kind.__qualname__ for kind in type(part).__mro__[:-1]], state])
    return found


def _description(patch: Any) -> list[Any]:
    """Name of a patch, and the constants in its closure; variables that it changes while it runs are left out."""
    function = patch.__func__ if isinstance(patch, MethodType) else patch
    if not isinstance(function, FunctionType):
        return [name_of(patch)]
    code = function.__code__
    changing = {step.argval for step in dis.get_instructions(code) if step.opname == "STORE_DEREF"}
    cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
    settings = {
        name: repr(cell.cell_contents) for name, cell in cells if name not in changing and _constant(cell.cell_contents)
    }
    return [name_of(patch), sorted(settings.items())]


def _constant(value: Any) -> bool:
    if isinstance(value, dict):
        return bool(value) and all(_constant(key) and _constant(item) for key, item in value.items())
    if type(value) is tuple:
        return all(map(_constant, value))
    return isinstance(value, (bool, int, float, str))
