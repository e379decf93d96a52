"""ONRW_NullTextInversion, ONRW_SaveInversion, ONRW_LoadInversion: inversion of latents, and files of inversions."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import folder_paths
import torch
import torch.nn.functional as F
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from comfy_api.latest import io, ui
from torch import Tensor

from ..onrw_core.diffusion.ode import CONVENTIONS
from ..onrw_core.imaging.pixels import check_finite
from ..onrw_core.payload.keys import redacted
from ..onrw_core.stages.inversion import METHODS, Inversion, invert, replay
from ..onrw_core.stages.noise_optimisation import PRESETS
from . import images
from .adapter import (
    NEGATIVE,
    POSITIVE,
    NoiseLevels,
    Progress,
    clean,
    family_of,
    from_comfy,
    from_latent,
    ordinary_tensors,
    run,
    sampled_path,
    to_latent,
)
from .inputs import AS_PRESET, CUSTOM, preset
from .places import Place
from .schemas import advanced, schema
from .sockets import STAGES, InversionType

__all__ = ["LoadInversionNode", "NullTextInversionNode", "SaveInversionNode"]

SAMPLED = "sampled"  # the method of a record whose path a sampler took
SUFFIX = ".safetensors"


class NullTextInversionNode(io.ComfyNode):
    """Inverts a latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ONRW_NullTextInversion",
            display_name="Null-Text Inversion",
            search_aliases=["DDIM inversion", "invert image", "fixed-point inversion"],
            category=STAGES,
            description="Finds the noise from which sampling reconstructs an image, and the null embeddings with which "
            "guided sampling does so (null-text inversion, Mokady et al., 2023).",
            inputs=[
                io.Model.Input("model", tooltip="The diffusion model, with any LoRAs and patches."),
                io.Conditioning.Input("positive", tooltip="A prompt that describes the image. It may be empty."),
                io.Conditioning.Input("negative", tooltip="The unconditional prompt, encoded from an empty text."),
                io.Latent.Input(
                    "latent", tooltip="The latent of the image, from VAE Encode or directly from a sampler."
                ),
                preset(
                    "Start sigma, steps, guidance and method; choose the same preset in Optimize Watermark Noise. "
                    "fast: one step. paper: null-text inversion, many steps, guidance. reference: a very low noise "
                    "level."
                ),
                advanced(
                    io.Combo.Input,
                    "schedule",
                    options=[AS_PRESET, CUSTOM],
                    default=AS_PRESET,
                    tooltip="as preset: steps, start sigma and guidance are those of the preset. custom: the numbers "
                    "below.",
                ),
                advanced(
                    io.Int.Input,
                    "steps",
                    default=10,
                    min=1,
                    max=1000,
                    tooltip="For the schedule custom: steps of the inversion, and of sampling.",
                ),
                advanced(
                    io.Float.Input,
                    "start_sigma",
                    default=1.0,
                    min=0.001,
                    max=1000.0,
                    step=0.001,
                    round=False,
                    tooltip="For the schedule custom: noise level (sigma) at which the inversion ends and sampling "
                    "starts; Stable Diffusion has .03 to 14.6.",
                ),
                advanced(
                    io.Float.Input,
                    "guidance",
                    default=4.5,
                    min=1.0,
                    max=30.0,
                    step=0.1,
                    tooltip="For the schedule custom: guidance scale (CFG) at which sampling reconstructs the image; 1 "
                    "is none.",
                ),
                io.Combo.Input(
                    "method",
                    options=[AS_PRESET, *METHODS],
                    default=AS_PRESET,
                    tooltip="ddim: DDIM inversion, accurate at guidance 1. null-text: optimises the null embedding of "
                    "each step. negative-prompt: the prompt as the null embedding, without optimisation. fixed-point: "
                    "iterates each step so that sampling reverses it.",
                ),
                advanced(
                    io.Int.Input,
                    "inner_steps",
                    default=10,
                    min=1,
                    max=500,
                    tooltip="Optimisation steps per null embedding, or iterations per fixed point. Other methods "
                    "ignore it.",
                ),
                advanced(
                    io.Combo.Input,
                    "convention",
                    options=list(CONVENTIONS),
                    default=CONVENTIONS[0],
                    tooltip="Noise level at which an inversion step evaluates the model: the lower level, from which "
                    "it starts (as ComfyUI's Flip Sigmas), or the higher level, at which it ends (as diffusers).",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Decodes the preview; without a VAE the preview shows the approximate colours of the "
                    "latent.",
                ),
                io.Noise.Input(
                    "noise",
                    optional=True,
                    tooltip="For an image that the sampler euler generated just now: its noise, from Random Noise. "
                    "With `sampled_sigmas`, the sampler's own steps from start_sigma on stand for the inversion, which "
                    "then has no error. Set `guidance` to the sampler's CFG; `steps` and `method` are not used.",
                ),
                io.Sigmas.Input(
                    "sampled_sigmas",
                    optional=True,
                    tooltip="The noise levels of that sampler, from a scheduler node.",
                ),
            ],
            outputs=[
                InversionType.Output(
                    "inversion",
                    "inversion",
                    tooltip="The inversion: noise, intermediate latents, null embeddings and prompts.",
                ),
                io.Latent.Output(
                    "inverted",
                    "noise",
                    tooltip="The inverted noise, scaled for a sampler that starts at the first of the sigmas.",
                ),
                io.Sigmas.Output(
                    "sigmas", "sigmas", tooltip="The noise levels of sampling, for SamplerCustomAdvanced."
                ),
                io.Image.Output(
                    "preview",
                    "preview",
                    tooltip="The result of guided sampling from the noise. The closer it is to the image, the better "
                    "the inversion.",
                ),
            ],
        )

    @classmethod
    @ordinary_tensors
    def execute(
        cls,
        model: ModelPatcher,
        positive: list,
        negative: list,
        latent: dict,
        preset: str,
        schedule: str,
        steps: int,
        start_sigma: float,
        guidance: float,
        method: str,
        inner_steps: int,
        convention: str,
        vae: VAE | None = None,
        noise: Any = None,
        sampled_sigmas: Tensor | None = None,
    ) -> io.NodeOutput:
        if (noise is None) != (sampled_sigmas is None):
            raise ValueError("noise: connect both `noise` and `sampled_sigmas`, or neither of them")
        own = {"steps": steps, "start_sigma": start_sigma, "guidance": guidance} if schedule == CUSTOM else {}
        settings = PRESETS[preset].suited_to(family_of(model.model).distilled)
        settings = settings.with_(**own, method=None if method == AS_PRESET else method)
        prompt, null = from_comfy(positive, POSITIVE), from_comfy(negative, NEGATIVE)
        latents = from_latent(model.model, clean(latent["samples"]).float())
        check_finite(latents, "latent")
        progress = Progress(len(latents) * 3 * settings.steps)
        path = None
        if sampled_sigmas is not None:
            sampling = positive, negative, settings.guidance, noise, sampled_sigmas, latent
            path = sampled_path(model, *sampling, settings.start_sigma)

        def inverted(core_model, index):
            if path is not None:
                return Inversion(
                    latents=path[0][:, index : index + 1],
                    sigmas=path[1],
                    null_embeddings=None,
                    positive=prompt,
                    null=null,
                    guidance=settings.guidance,
                    method=SAMPLED,
                    model=core_model.name,
                )
            states = invert(
                core_model,
                latents[index : index + 1],
                prompt,
                null,
                steps=settings.steps,
                start_sigma=settings.start_sigma,
                guidance=settings.guidance,
                method=settings.method,
                at=convention,
                inner_steps=inner_steps,
            )
            return progress.result_of(states, 2 * settings.steps)

        def work(core_model, autoencoder):
            inversions, previews = [], []
            for index in range(len(latents)):
                inversion = inverted(core_model, index)
                inversions.append(inversion)
                with torch.no_grad():
                    x = progress.result_of(replay(core_model, inversion, positive=prompt), settings.steps)
                    previews.append(
                        _colours(model, x, core_model.factor) if autoencoder is None else autoencoder.decode(x)
                    )
            return tuple(inversions), torch.cat(previews)

        inversions, previews = run(model, vae, prompt, null, (1, *latents.shape[1:]), work)
        noisy = to_latent(model.model, torch.cat([inversion.latents[0] for inversion in inversions]))
        levels = NoiseLevels(model.get_model_object("model_sampling"))
        sigmas = levels.sigma_out(inversions[0].sigmas)
        return io.NodeOutput(inversions, {"samples": noisy}, sigmas, images.to_comfy(previews))


def _colours(model: ModelPatcher, latent: Tensor, factor: int) -> Tensor:
    """A linear preview of a latent at the size of its image; grey where the format has no preview."""
    shown = model.model.latent_format
    size = [side * factor for side in latent.shape[-2:]]
    if shown.latent_rgb_factors is None:
        return torch.full((1, 3, *size), 0.5)
    reshape = getattr(shown, "latent_rgb_factors_reshape", None)  # Flux2: the pixels of its patches
    latent = latent if reshape is None else reshape(latent)
    bias = getattr(shown, "latent_rgb_factors_bias", None)
    bias = torch.zeros(3) if bias is None else torch.tensor(bias)
    colours = torch.einsum("bchw,cr->brhw", latent, torch.tensor(shown.latent_rgb_factors)) + bias[:, None, None]
    return F.interpolate(colours / 2 + 0.5, size).clamp(0, 1)


class SaveInversionNode(io.ComfyNode):
    """Writes inversions to files."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ONRW_SaveInversion",
            display_name="Save Inversion",
            search_aliases=["save latents"],
            category=STAGES,
            description="Saves inversions into ComfyUI's output folder, one safetensors file per image.",
            inputs=[
                InversionType.Input("inversion", tooltip="From Null-Text Inversion."),
                io.String.Input(
                    "filename_prefix", default="onrw/inversion", tooltip="Folder and prefix of the file names."
                ),
            ],
            outputs=[InversionType.Output("saved", "inversion", tooltip="The same inversions.")],
            is_output_node=True,
        )

    @classmethod
    @ordinary_tensors
    def execute(cls, inversion: tuple[Inversion, ...], filename_prefix: str) -> io.NodeOutput:
        place = Place.of(filename_prefix, SUFFIX, len(inversion))
        saved = []
        for index, record in enumerate(inversion):
            path = place.path(index)
            record.save(path)
            saved.append(path.relative_to(folder_paths.get_output_directory()).as_posix())
        return io.NodeOutput(inversion, ui=ui.PreviewText("\n".join(saved)))


class LoadInversionNode(io.ComfyNode):
    """Reads an inversion from a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="ONRW_LoadInversion",
            display_name="Load Inversion",
            search_aliases=["load latents"],
            category=STAGES,
            description="Loads an inversion from ComfyUI's input or output folder.",
            inputs=[
                io.Combo.Input(
                    "file",
                    options=_files(),
                    tooltip="A file written by Save Inversion. [output]: a file in the output folder.",
                )
            ],
            outputs=[
                InversionType.Output(
                    "inversion",
                    "inversion",
                    tooltip="The inversion, for Optimize Watermark Noise and Watermark Guider.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        try:
            return file is None or bool(_path(file))
        except ValueError as error:
            return redacted(str(error))

    @classmethod
    def fingerprint_inputs(cls, file: str | None) -> float:
        return math.nan if file is None else _path(file).stat().st_mtime  # NaN: a linked name is read every time

    @classmethod
    @ordinary_tensors
    def execute(cls, file: str) -> io.NodeOutput:
        return io.NodeOutput((Inversion.load(_path(file)),))


def _path(file: str) -> Path:
    """The inversion of that name. A linked name is checked here only; `validate_inputs` gets widget values alone.

    Raises:
        ValueError: If it is no inversion in ComfyUI's input, output or temporary folder.
    """
    name, folder = folder_paths.annotated_filepath(file)
    base = Path(folder or folder_paths.get_input_directory()).absolute()
    path = Path(os.path.normpath(base / name))
    # os.path.isfile, unlike Path.is_file, is False for names with NUL and for names that are too long.
    if not path.is_relative_to(base) or path.suffix != SUFFIX or not os.path.isfile(path):
        raise ValueError(f"file: {file!r} is no inversion in the input or output folder; save one first")
    return path


def _files() -> list[str]:
    """Inversions in the input folder, then those in the output folder, newest first."""
    found = []
    places = ((folder_paths.get_input_directory(), ""), (folder_paths.get_output_directory(), " [output]"))
    for folder, annotation in places:
        paths = [path for path in Path(folder).rglob(f"*{SUFFIX}") if not path.name.startswith(".")]
        paths.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        found += [path.relative_to(folder).as_posix() + annotation for path in paths]
    return found
