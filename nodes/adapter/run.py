"""Run the core's algorithms inside ComfyUI's sampling.

ComfyUI prepares models and prompts for a sampler: weights are loaded and patched (LoRA), hooks registered, areas and
ControlNets set up, extra embeddings computed. So the core's loops run as a sampler: `run` starts a guider whose sampler
calls the given function with the prepared model, and returns what the function returns. The user's MODEL is left as it
was; its weights are shared, and copied only if ComfyUI lends them (see weights.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Generic, TypeVar

import comfy.model_management
import comfy.samplers
import torch
from comfy.ldm.modules import attention
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from torch import Tensor

from ...onrw_core.diffusion.model import Autoencoder, Conditioning, DiffusionModel
from .autoencoder import ComfyAutoencoder
from .conditioning import NEGATIVE, POSITIVE, to_comfy
from .latents import to_network
from .model import ComfyModel
from .patches import name_of, patches
from .weights import fresh_weights, lent, normalise, normalise_format

__all__ = ["run"]

Result = TypeVar("Result")
GRADIENT_MEMORY = 4  # memory relative to sampling: the backward pass keeps activations
MULTIGPU = "multigpu"
"""ComfyUI's key of a model's copies on other cards, which it runs without gradients: one card does the work."""


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
        model: A MODEL, with its LoRAs and patches.
        vae: The VAE; None if the function does not need it.
        positive: The prompt (see `conditioning.from_comfy`).
        null: The unconditional prompt, or None.
        shape: Of the core's latents, (B, C, h, w).
        function: Called outside of inference mode, so it may differentiate.

    Raises:
        ValueError: If the model is not supported, or its weights or one of its patches cannot be differentiated.
    """
    if model.get_additional_models_with_key(MULTIGPU):
        model = model.clone()
        model.remove_additional_models(MULTIGPU)
    guider = comfy.samplers.CFGGuider(model)
    prompts = {POSITIVE: positive, NEGATIVE: positive if null is None else null}
    guider.inner_set_conds({role: to_comfy(prompt) for role, prompt in prompts.items()})
    sampler = _Work(vae, prompts, function)
    with torch.inference_mode(False), torch.enable_grad(), _kernels_with_gradients():
        latent = to_network(model.model, torch.zeros(shape))
        sigmas = model.get_model_object("model_sampling").sigmas.flip(0).float().cpu().clone()
        try:
            guider.sample(latent, latent, sampler, sigmas, disable_pbar=True, seed=0)
        except RuntimeError as error:
            reason = _no_gradient(model, str(error))
            if reason is None:
                raise
            raise ValueError(f"model: {reason}. {error}") from error
    return sampler.results[0]


@contextmanager
def _kernels_with_gradients() -> Iterator[None]:
    """A context in which ComfyUI uses kernels with a backward pass, also in ControlNets, which take no options."""
    management = comfy.model_management
    names = [(attention, "optimized_attention"), (attention, "optimized_attention_masked")]
    before = [(module, name, getattr(module, name)) for module, name in names]
    for module, name in names:
        setattr(module, name, attention.attention_pytorch)
    if hasattr(management, "in_training"):  # 0.13.0 and later
        before.append((management, "in_training", management.in_training))
        management.in_training = True
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def _no_gradient(model: ModelPatcher, error: str) -> str | None:
    """The reason of an error of autograd, from the state of ComfyUI; None for any other error."""
    signs = ("inplace operation", "Inference tensors cannot be saved", "does not require grad")
    if not any(sign in error for sign in signs):
        return None
    stuck = {
        type(layer).__name__
        for layer in model.model.modules()
        if any(True for _ in layer.parameters(recurse=False))
        and lent(layer, model.load_device)
        and not hasattr(layer, "weight_function")
    }
    if stuck:
        return (
            "its weights are offloaded or quantised in layers that cannot be differentiated "
            f"({', '.join(sorted(stuck))}); free memory, start ComfyUI with --highvram, or use another checkpoint"
        )
    found = sorted({f"{name_of(patch)} ({place})" for place, patch in patches(model.model_options)})
    return (
        f"a patch on it cannot be differentiated ({', '.join(found) or 'none is known'}); connect the model as it is "
        "before that patch"
    )


class _Work(comfy.samplers.Sampler, Generic[Result]):
    """A sampler that calls a given function in place of sampling."""

    def __init__(self, vae: VAE | None, prompts: dict[str, Any], function: Callable[..., Result]) -> None:
        self.vae, self.prompts, self.function = vae, prompts, function
        self.results: list[Result] = []

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
        with ExitStack() as stack:
            for patcher in [guider.model_patcher, *guider.loaded_models, *vae]:
                normalise(patcher.model)
                stack.enter_context(fresh_weights(patcher.model, patcher.load_device))
            normalise_format(base.latent_format)
            autoencoder = None if self.vae is None else ComfyAutoencoder(self.vae, base)
            factor = None if autoencoder is None else autoencoder.factor
            model = ComfyModel(guider, extra_args["model_options"], self.prompts, factor)
            self.results.append(self.function(model, autoencoder))
        return noise
