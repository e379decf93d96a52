"""SDXL and SD3 pipelines of diffusers, tiny and random, beside those of SD1 and SD2 in test_backends.py."""

import pytest
import torch

from onrw_core.diffusion.attention import record_rule
from onrw_core.diffusion.model import AttentionControl
from onrw_core.diffusion.ode import euler
from onrw_core.stages.constrained_denoising import Constraint, denoise, replay_original
from onrw_core.stages.inversion import invert, replay
from onrw_core.stages.progress import result_of

from .test_backends import LENGTH, make_pipeline, noise, tokenizer  # noqa: F401  (a fixture)

from diffusers import (  # isort: skip  (after test_backends: lets it import beside a foreign torchvision)
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from onrw_core.diffusion.backends.checkpoint import load_checkpoint
from onrw_core.diffusion.backends.diffusers import from_pipeline

WIDTH, WIDER = 24, 32  # of the first and of the second text encoder; single files are told apart by them


def projecting(tokenizer, seed, width=WIDER):  # noqa: F811
    torch.manual_seed(seed)
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=LENGTH,
            projection_dim=width,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def sdxl(tokenizer):  # noqa: F811
    first = make_pipeline(tokenizer)
    torch.manual_seed(1)
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH + WIDER,
        attention_head_dim=2,
        use_linear_projection=True,
        norm_num_groups=4,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDER,
    )
    parts = first.vae, first.text_encoder, projecting(tokenizer, 2), tokenizer, tokenizer, unet, first.scheduler
    return StableDiffusionXLPipeline(*parts, force_zeros_for_empty_prompt=True, add_watermarker=False)


def sd3(tokenizer):  # noqa: F811
    torch.manual_seed(1)
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=3 * WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=WIDTH + WIDER,
        pos_embed_max_size=32,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        shift_factor=0.1,
    )
    first = projecting(tokenizer, 2, WIDTH)
    torch.nn.init.eye_(first.text_projection.weight)  # CLIP-L's, which single files do not hold
    clips = first, tokenizer, projecting(tokenizer, 3), tokenizer
    return StableDiffusion3Pipeline(
        transformer, FlowMatchEulerDiscreteScheduler(shift=3.0), vae, *clips, text_encoder_3=None, tokenizer_3=None
    )


@pytest.fixture(scope="module", params=[sdxl, sd3])
def pipeline(request, tokenizer):  # noqa: F811
    made = request.param(tokenizer)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def parts(pipeline):
    return from_pipeline(pipeline)


def test_sampling_equals_the_pipeline(pipeline, parts):
    model, _, encode = parts
    steps, guidance, z = 4, 4.5, noise()
    flow = isinstance(pipeline, StableDiffusion3Pipeline)
    size = {"height": 32, "width": 32} if not flow else {}
    found = {}

    def keep(pipe, step, timestep, values):
        found[step] = values["latents"].clone()
        return values

    pipeline(
        "a cat",
        negative_prompt="a dog",
        latents=z,
        num_inference_steps=steps,
        guidance_scale=guidance,
        output_type="latent",
        callback_on_step_end=keep,
        **size,
    )
    # From the first step's result on: a flow starts at level 1, where the eps form has no finite latent.
    scheduler = pipeline.scheduler
    if flow:
        levels = scheduler.sigmas[1:-1]
        sigmas, x = levels / (1 - levels), found[0] / (1 - levels[0])
        expected = found[steps - 2] / (1 - levels[-1])
    else:
        sigmas = model.sigmas[scheduler.timesteps[1:]]
        x = found[0] * (1 + sigmas[0] ** 2).sqrt()
        expected = found[steps - 2] * (1 + sigmas[-1] ** 2).sqrt()
    positive, null = encode("a cat"), encode("a dog")
    with torch.no_grad():
        for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
            x = euler(x, model.guided(x, sigma, positive, null, guidance)[0], sigma, following)
    torch.testing.assert_close(x, expected, atol=1e-3, rtol=1e-3)


def test_maps_and_injection(parts):
    model, _, encode = parts
    x, sigma, prompts = noise(2, 4, 16, 16), torch.tensor(1.0), [encode("a cat"), encode("")]
    plain, _ = model.denoise(x, sigma, prompts)
    control = AttentionControl(record_rule((16, 16)), mean=True)
    recorded, maps = model.denoise(x, sigma, prompts, control)
    assert all(map(torch.equal, plain, recorded)) and maps.self_attention
    for found in (*maps.self_attention.values(), *maps.cross_attention.values()):
        torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:-1]))
    _, full = model.denoise(x, sigma, prompts, AttentionControl(lambda kind, tokens: True))
    own, _ = model.denoise(x, sigma, prompts, AttentionControl(lambda *_: False, full))
    torch.testing.assert_close(own[0], plain[0], rtol=1e-4, atol=1e-5)
    _, other = model.denoise(x.flip(-1), sigma, prompts, AttentionControl(lambda kind, tokens: True))
    moved, _ = model.denoise(x, sigma, prompts, AttentionControl(lambda *_: False, other))
    assert not torch.allclose(moved[0], plain[0], atol=1e-5)
    torch.testing.assert_close(moved[1], plain[1], rtol=1e-4, atol=1e-5)

    def gradient(recompute):
        start = x.clone().requires_grad_()
        if recompute:
            with model.recomputing():
                out, maps = model.denoise(start, sigma, prompts, control)
        else:
            out, maps = model.denoise(start, sigma, prompts, control)
        loss = out[0].square().sum() + sum(m.square().sum() for m in maps.self_attention.values())
        return torch.autograd.grad(loss, start)[0]

    torch.testing.assert_close(gradient(True), gradient(False))


def test_inversion_comes_back_and_constraints_apply(parts, monkeypatch):
    model, _, encode = parts
    monkeypatch.setattr(model, "factor", 8)  # the tiny VAE's is 2, at which no layer is coarse enough
    latent = noise()
    options = {"steps": 4, "start_sigma": 0.2, "guidance": 2.0, "method": "fixed-point"}
    record = result_of(invert(model, latent, encode("a cat", word="cat"), encode(""), inner_steps=30, **options))
    back = result_of(replay(model, record))
    assert (back - latent).norm() < 1e-2 * latent.norm()
    replayed = replay_original(model, record, Constraint(attention=True))
    with torch.no_grad():
        _, loss = denoise(model, record, record.latents[0] + 0.5, replayed)
    assert loss > 0


def test_folder(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    model, autoencoder, encode = load_checkpoint(tmp_path)
    latent = autoencoder.encode(torch.rand(1, 3, 32, 32))
    (x0,), _ = model.denoise(latent, torch.tensor(1.0), [encode("a cat")])
    assert x0.shape == latent.shape and not any(p.requires_grad for p in model.unet.parameters())


def test_the_empty_prompt_of_sdxl_is_zero(tokenizer):  # noqa: F811
    _, _, encode = from_pipeline(sdxl(tokenizer))
    assert not encode("").embeddings.any() and not encode("").pooled.any()
    assert encode("a cat").embeddings.any() and encode("a cat").content == (1, 2)
