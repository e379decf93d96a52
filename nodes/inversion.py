"""ONRW_NullTextInversion, ONRW_SaveInversion, ONRW_LoadInversion: from a latent to the noise it came from."""

from __future__ import annotations

from pathlib import Path

import folder_paths
import torch
import torch.nn.functional as F
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from comfy_api.latest import io, ui
from torch import Tensor

from ..onrw_core.inversion import METHODS, Inversion, invert, replay
from ..onrw_core.ode import CONVENTIONS
from ..onrw_core.optimise import PRESETS
from . import images
from .adapter import NEGATIVE, POSITIVE, Progress, clean, from_comfy, ordinary_tensors, run
from .sockets import CATEGORY, InversionType

__all__ = ["LoadInversionNode", "NullTextInversionNode", "SaveInversionNode"]

AS_PRESET = "as preset"
DEFAULT_PRESET = "fast"
SUFFIX = ".safetensors"


class NullTextInversionNode(io.ComfyNode):
    """Inverts a latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ONRW_NullTextInversion",
            display_name="ONRW Null-Text Inversion",
            category=CATEGORY,
            description="Finds the noise that a picture would have come from, and what keeps guided sampling on the "
            "way "
            "back to it (null-text inversion, Mokady et al. 2023).",
            inputs=[
                io.Model.Input("model", tooltip="The diffusion model, with any LoRAs and patches."),
                io.Conditioning.Input("positive", tooltip="What the picture shows. An empty prompt works too."),
                io.Conditioning.Input("negative", tooltip="The unconditional prompt: an empty text."),
                io.Latent.Input("latent", tooltip="The picture's latent, from VAE Encode or straight from a sampler."),
                io.Combo.Input(
                    "preset",
                    options=list(PRESETS),
                    default=DEFAULT_PRESET,
                    tooltip="Where the inversion ends, in how many steps and how, for the preset of the same name in "
                    "ONRW "
                    "Optimize Noise. fast: one step. paper: null-text, many steps, guidance. reference: nearly no "
                    "noise.",
                ),
                io.Int.Input(
                    "steps", default=0, min=0, max=1000, tooltip="Steps of the inversion, and back. 0: as the preset."
                ),
                io.Float.Input(
                    "start_sigma",
                    default=0.0,
                    min=0.0,
                    max=1000.0,
                    step=0.001,
                    round=False,
                    tooltip="Noise level at which the inversion ends and sampling will start (sigma; SD: .03 to "
                    "14.6). 0: as "
                    "the preset.",
                ),
                io.Float.Input(
                    "guidance",
                    default=0.0,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    tooltip="Guidance (CFG) at which the picture is to be retraced. 0: as the preset; 1: none.",
                ),
                io.Combo.Input(
                    "method",
                    options=[AS_PRESET, *METHODS],
                    default=AS_PRESET,
                    tooltip="ddim: plain, exact enough at guidance 1. null-text: optimises the negative prompt for "
                    "each step. "
                    "negative-prompt: its free approximation. fixed-point: iterates each step.",
                ),
                io.Int.Input(
                    "inner_steps",
                    default=10,
                    min=1,
                    max=500,
                    tooltip="Optimisation steps per null embedding, or iterations per fixed point. Other methods "
                    "ignore it.",
                ),
                io.Combo.Input(
                    "convention",
                    options=list(CONVENTIONS),
                    default=CONVENTIONS[0],
                    tooltip="Where the model is evaluated on the way up: at the level it leaves (as ComfyUI's Flip "
                    "Sigmas) or "
                    "at the one it goes to (as diffusers).",
                ),
                io.Vae.Input(
                    "vae", optional=True, tooltip="Decodes the preview; without it the latent's colours are shown."
                ),
            ],
            outputs=[
                InversionType.Output(
                    "inversion", "inversion", tooltip="The record: noise, path, null embeddings and prompts."
                ),
                io.Latent.Output(
                    "noise", "noise", tooltip="The inverted noise, as it enters a sampler at the first of the sigmas."
                ),
                io.Sigmas.Output(
                    "sigmas", "sigmas", tooltip="The noise levels of the way back, for SamplerCustomAdvanced."
                ),
                io.Image.Output(
                    "preview",
                    "preview",
                    tooltip="What guided sampling makes of the noise: the closer to the picture, "
                    "the better the inversion.",
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
        steps: int,
        start_sigma: float,
        guidance: float,
        method: str,
        inner_steps: int,
        convention: str,
        vae: VAE | None = None,
    ) -> io.NodeOutput:
        settings = PRESETS[preset].with_(
            steps=steps or None,
            start_sigma=start_sigma or None,
            guidance=guidance or None,
            method=None if method == AS_PRESET else method,
        )
        prompt, null = from_comfy(positive, POSITIVE), from_comfy(negative, NEGATIVE)
        samples = clean(latent["samples"]).float()
        progress = Progress(len(samples) * (3 * settings.steps + 1))

        def work(core_model, autoencoder):
            inversions, previews = [], []
            for sample in model.model.process_latent_in(samples).split(1):
                states = invert(
                    core_model,
                    sample,
                    prompt,
                    null,
                    steps=settings.steps,
                    start_sigma=settings.start_sigma,
                    guidance=settings.guidance,
                    method=settings.method,
                    at=convention,
                    inner_steps=inner_steps,
                )
                for state in progress.follow(states, 2 * settings.steps + 1):
                    inversion = state.inversion
                inversions.append(inversion)
                with torch.no_grad():
                    *_, (_, x) = progress.follow(replay(core_model, inversion, positive=prompt), settings.steps)
                    previews.append(_colours(model, x) if autoencoder is None else autoencoder.decode(x))
            return tuple(inversions), torch.cat(previews)

        inversions, previews = run(model, vae, prompt, null, (1, *samples.shape[1:]), work)
        noise = model.model.process_latent_out(torch.cat([inversion.latents[0] for inversion in inversions]))
        return io.NodeOutput(inversions, {"samples": noise}, inversions[0].sigmas, images.to_comfy(previews))


def _colours(model: ModelPatcher, latent: Tensor) -> Tensor:
    """A latent's colours at the size of its picture, grey where the format has none."""
    factors = model.model.latent_format.latent_rgb_factors
    if factors is None:
        return torch.full((1, 3, latent.shape[-2] * 8, latent.shape[-1] * 8), 0.5)
    bias = getattr(model.model.latent_format, "latent_rgb_factors_bias", None)
    bias = torch.zeros(3) if bias is None else torch.tensor(bias)
    colours = torch.einsum("bchw,cr->brhw", latent, torch.tensor(factors)) + bias[:, None, None]
    return F.interpolate(colours / 2 + 0.5, scale_factor=8).clamp(0, 1)


class SaveInversionNode(io.ComfyNode):
    """Writes inversions to files."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ONRW_SaveInversion",
            display_name="ONRW Save Inversion",
            category=CATEGORY,
            description="Saves inversions into ComfyUI's output folder, one safetensors file per image.",
            inputs=[
                InversionType.Input("inversion", tooltip="From ONRW Null-Text Inversion."),
                io.String.Input(
                    "filename_prefix", default="onrw/inversion", tooltip="Folder and beginning of the file names."
                ),
            ],
            outputs=[InversionType.Output("saved", "inversion", tooltip="The same inversions.")],
            is_output_node=True,
        )

    @classmethod
    @ordinary_tensors
    def execute(cls, inversion: tuple[Inversion, ...], filename_prefix: str) -> io.NodeOutput:
        folder, name, counter, _, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory()
        )
        saved = []
        for number, record in enumerate(inversion, counter):
            path = Path(folder) / f"{name}_{number:05}_{SUFFIX}"
            record.save(path)
            saved.append(path.relative_to(folder_paths.get_output_directory()).as_posix())
        return io.NodeOutput(inversion, ui=ui.PreviewText("\n".join(saved)))


class LoadInversionNode(io.ComfyNode):
    """Reads an inversion from a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ONRW_LoadInversion",
            display_name="ONRW Load Inversion",
            category=CATEGORY,
            description="Loads an inversion from ComfyUI's input or output folder.",
            inputs=[
                io.Combo.Input(
                    "file",
                    options=_files(),
                    tooltip="A file that ONRW Save Inversion wrote. [output]: it lies in the output folder.",
                )
            ],
            outputs=[
                InversionType.Output(
                    "inversion", "inversion", tooltip="The record, for ONRW Optimize Noise and ONRW Guider."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        if file is not None and not folder_paths.exists_annotated_filepath(file):
            return f"file: {file!r} is not in the input or output folder; save an inversion first"
        return True

    @classmethod
    def fingerprint_inputs(cls, file: str) -> float:
        return Path(folder_paths.get_annotated_filepath(file)).stat().st_mtime

    @classmethod
    @ordinary_tensors
    def execute(cls, file: str) -> io.NodeOutput:
        return io.NodeOutput((Inversion.load(folder_paths.get_annotated_filepath(file)),))


def _files() -> list[str]:
    """Inversions in the input folder, then those in the output folder, newest first."""
    found = []
    places = ((folder_paths.get_input_directory(), ""), (folder_paths.get_output_directory(), " [output]"))
    for folder, annotation in places:
        paths = [path for path in Path(folder).rglob(f"*{SUFFIX}") if not path.name.startswith(".")]
        paths.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        found += [path.relative_to(folder).as_posix() + annotation for path in paths]
    return found
