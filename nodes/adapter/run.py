"""Run the core's algorithms inside ComfyUI's sampling.

ComfyUI prepares models and prompts for a sampler: weights are loaded and patched (LoRA), hooks registered, areas and
ControlNets set up, extra embeddings computed. So the core's loops run as a sampler: `run` starts a guider whose sampler
calls the given function with the prepared model, and returns what the function returns. The user's MODEL is left as it
was; its weights are shared, never copied.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import comfy.model_management
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from torch import Tensor

from ...onrw_core.model import Autoencoder, Conditioning, DiffusionModel
from .autoencoder import ComfyAutoencoder
from .conditioning import NEGATIVE, POSITIVE, to_comfy
from .model import ComfyModel
from .weights import normalise

__all__ = ["run"]

Result = TypeVar("Result")
GRADIENT_MEMORY = 4  # times the memory of sampling: the activations that the backward pass keeps


def run(
    model: ModelPatcher,
    vae: VAE | None,
    positive: Conditioning,
    null: Conditioning | None,
    shape: tuple[int, ...],
    function: Callable[[DiffusionModel, Autoencoder | None], Result],
) -> Result:
    """Call ``function(model, autoencoder)`` inside ComfyUI's sampling, with gradients enabled.

    Args:
        model: A MODEL with whatever LoRAs and patches the user gave it.
        vae: The VAE; None where the function does without.
        positive: The prompt (see `conditioning.from_comfy`).
        null: The unconditional prompt, or None.
        shape: Of the latents that the model will see, (B, C, h, w).
        function: The work. It runs outside of inference mode, so it may differentiate.

    Raises:
        ValueError: If the model is not supported, or one of its patches cannot be differentiated.
    """
    guider = comfy.samplers.CFGGuider(model)
    prompts = {POSITIVE: positive, NEGATIVE: positive if null is None else null}
    guider.inner_set_conds({role: to_comfy(prompt) for role, prompt in prompts.items()})
    sampler = _Work(vae, prompts, function)
    with torch.inference_mode(False), torch.enable_grad():
        latent = torch.zeros(shape)
        sigmas = model.get_model_object("model_sampling").sigmas.flip(0).float().cpu().clone()
        try:
            guider.sample(latent, latent, sampler, sigmas, disable_pbar=True, seed=0)
        except RuntimeError as error:
            if "inplace operation" in str(error):
                raise ValueError(
                    f"model: a patch on it cannot be differentiated ({_patches(model)}); connect the model as it is "
                    "before "
                    f"that patch (FreeU is known for this). {error}"
                ) from error
            raise
    return sampler.result


class _Work(comfy.samplers.Sampler):
    """A sampler whose sampling is somebody else's function."""

    def __init__(self, vae: VAE | None, prompts: dict[str, Any], function: Callable) -> None:
        self.vae, self.prompts, self.function, self.result = vae, prompts, function, None

    def sample(
        self,
        model_wrap: comfy.samplers.CFGGuider,
        sigmas: Tensor,
        extra_args: dict,
        callback: Callable | None,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        guider = model_wrap
        base = guider.inner_model
        vae = [] if self.vae is None else [self.vae.patcher]
        # One load of everything: a later one could move weights under a live graph.
        memory = base.memory_required([2 * len(noise), *noise.shape[1:]]) * GRADIENT_MEMORY
        comfy.model_management.load_models_gpu([guider.model_patcher, *guider.loaded_models, *vae], memory)
        normalise(base)
        for patcher in guider.loaded_models + vae:
            normalise(patcher.model)
        model = ComfyModel(guider, extra_args["model_options"], self.prompts)
        autoencoder = None if self.vae is None else ComfyAutoencoder(self.vae, base)
        self.result = self.function(model, autoencoder)
        return noise


def _patches(model: ModelPatcher) -> str:
    """Names of the modules that patched a model's forward pass."""
    transformer = model.model_options.get("transformer_options", {})
    functions = [f for patches in transformer.get("patches", {}).values() for f in patches]
    functions += [f for table in transformer.get("patches_replace", {}).values() for f in table.values()]
    return ", ".join(sorted({f"{f.__module__}.{getattr(f, '__qualname__', f)}" for f in functions})) or "unknown"
