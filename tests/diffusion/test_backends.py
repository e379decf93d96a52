import json
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from onrw_core.diffusion.attention import pseudo_mask, record_rule, self_attention_loss
from onrw_core.diffusion.backends import ensure_torchvision
from onrw_core.diffusion.model import AttentionControl
from onrw_core.diffusion.ode import schedule
from onrw_core.stages.inversion import invert, replay
from onrw_core.stages.progress import result_of

from ..dummies import SCALED_LINEAR

pytest.importorskip("transformers")
ensure_torchvision()

from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel  # noqa: E402
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer  # noqa: E402

from onrw_core.diffusion.backends.diffusers import DiffusersModel, from_pipeline  # noqa: E402

LETTERS = [chr(ord("a") + i) for i in range(26)]
MERGES = ["c a", "ca t</w>", "d o", "do g</w>", "b e", "be d</w>", "n a", "o n</w>"]
LENGTH = 16


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    pieces = LETTERS + [letter + "</w>" for letter in LETTERS] + [merge.replace(" ", "") for merge in MERGES]
    vocabulary = {piece: i for i, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]))
    return CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), pad_token="<|endoftext|>", model_max_length=LENGTH
    )


def make_pipeline(tokenizer, prediction: str = "epsilon"):
    """The parts of Stable Diffusion, tiny and random; heads by number (SD1) or by layer (SD2)."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=(2, 4) if prediction == "v_prediction" else 2,
        use_linear_projection=prediction == "v_prediction",
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=24,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    scheduler = DDIMScheduler(
        **SCALED_LINEAR,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
        prediction_type=prediction,
    )
    pipeline = StableDiffusionPipeline(
        vae, text_encoder, tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def pipeline(request, tokenizer):
    return make_pipeline(tokenizer, request.param)


@pytest.fixture(scope="module")
def parts(pipeline):
    return from_pipeline(pipeline)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*(shape or (1, 4, 16, 16)), generator=torch.Generator().manual_seed(seed))


def test_sampling_equals_the_pipeline(pipeline, parts):
    model, autoencoder, encode = parts
    steps, guidance = 4, 4.5
    z = noise()
    sigmas = schedule(model.sigmas, steps)
    expected = pipeline("a cat", latents=z, num_inference_steps=steps, guidance_scale=guidance, output_type="pt").images
    x = z * (1 + sigmas[0] ** 2).sqrt()
    positive, null = encode("a cat"), encode("")
    with torch.no_grad():
        for i in range(steps):
            x0, _ = model.guided(x, sigmas[i], positive, null, guidance)
            x = x + (sigmas[i + 1] - sigmas[i]) / sigmas[i] * (x - x0)
        picture = autoencoder.decode(x / (1 + sigmas[-1] ** 2).sqrt())
    torch.testing.assert_close(picture.clamp(0, 1), expected, atol=1e-4, rtol=0)


def test_recording_changes_no_bit_and_gives_back_the_processors(pipeline, parts):
    model, _, encode = parts
    conditionings = [encode("a cat"), encode("")]
    x, sigma = noise(2, 4, 16, 16), torch.tensor(1.5)
    before = dict(model.unet.attn_processors)
    plain, none = model.denoise(x, sigma, conditionings)
    recorded, maps = model.denoise(x, sigma, conditionings, AttentionControl(record=lambda kind, tokens: True))
    assert all(torch.equal(a, b) for a, b in zip(plain, recorded, strict=True))
    assert model.unet.attn_processors.keys() == before.keys()
    assert all(model.unet.attn_processors[name] is before[name] for name in before)
    assert not none.self_attention and not none.cross_attention
    assert len(maps.self_attention) == len(maps.cross_attention) == len(before) // 2
    for layer, attention in (maps.self_attention | maps.cross_attention).items():
        height, width = maps.sizes[layer]
        assert attention.shape[0] == 2 and attention.shape[2] == height * width
        torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:-1]))


def test_maps_are_those_the_network_uses(parts):
    # Injecting a branch's own maps gives its own output, which holds only for the true probabilities.
    model, _, encode = parts
    x, sigma, conditionings = noise(), torch.tensor(1.5), [encode("a cat"), encode("")]
    plain, maps = model.denoise(x, sigma, conditionings, AttentionControl(record=lambda kind, tokens: True))
    none = AttentionControl(record=lambda kind, tokens: False, inject=maps)
    injected, empty = model.denoise(x, sigma, conditionings, none)
    assert not empty.self_attention
    for a, b in zip(plain, injected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    _, other = model.denoise(x.flip(-1), sigma, conditionings[:1], AttentionControl(lambda kind, tokens: True))
    moved, _ = model.denoise(x, sigma, conditionings, AttentionControl(none.record, other))
    assert (moved[0] - plain[0]).abs().max() > 1e-4
    torch.testing.assert_close(moved[1], plain[1], rtol=1e-5, atol=1e-5)


def test_injecting_maps_of_another_size_is_refused(parts):
    model, _, encode = parts
    record = AttentionControl(lambda kind, tokens: True)
    _, maps = model.denoise(noise(1, 4, 8, 8), torch.tensor(1.0), [encode("a cat")], record)
    before = dict(model.unet.attn_processors)
    with pytest.raises(ValueError, match="same size"):
        model.denoise(noise(), torch.tensor(1.0), [encode("a cat")], AttentionControl(record.record, maps))
    assert all(model.unet.attn_processors[name] is before[name] for name in before)


def test_rule_records_what_the_constraint_and_the_mask_need(parts):
    model, _, encode = parts
    positive = encode("cat on a bed", word="bed")
    x = noise(1, 4, 16, 24)
    _, maps = model.denoise(x, torch.tensor(1.0), [positive], AttentionControl(record_rule((16, 24))))
    assert maps.self_attention and {a.shape[-1] for a in maps.self_attention.values()} == {8 * 12}
    assert not maps.cross_attention  # this UNet has no layer at a quarter of the latent
    _, maps = model.denoise(x, torch.tensor(1.0), [positive], AttentionControl(lambda kind, tokens: kind == "cross"))
    assert pseudo_mask(maps, positive, (16, 24)).shape == (1, 1, 16, 24)


def test_maps_pass_checkpointing_with_their_gradient(parts):
    model, _, encode = parts
    positive, sigma = encode("a cat"), torch.tensor(1.0)
    control = AttentionControl(record_rule((16, 16)))
    _, reference = model.denoise(noise(seed=1), sigma, [positive], control)

    def loss(x: torch.Tensor) -> torch.Tensor:
        (x0,), maps = model.denoise(x, sigma, [positive], control)
        return x0.square().mean() + 1e3 * self_attention_loss(maps, reference)

    def gradient(function) -> torch.Tensor:
        x = noise().requires_grad_()
        function(x).backward()
        return x.grad

    plain = gradient(loss)
    torch.testing.assert_close(gradient(lambda x: checkpoint(loss, x, use_reentrant=False)), plain)
    without = gradient(lambda x: model.denoise(x, sigma, [positive])[0][0].square().mean())
    assert not torch.allclose(plain, without)
    assert all(p.grad is None and not p.requires_grad for p in model.unet.parameters())


def test_recomputing_block_by_block_keeps_probes_and_gradient(parts):
    model, _, encode = parts
    positive, sigma = encode("a cat"), torch.tensor(1.0)
    control = AttentionControl(record_rule((16, 16)), mean=True)
    _, reference = model.denoise(noise(seed=1), sigma, [positive], control)
    calls = []
    block = next(m for m in model.unet.modules() if type(m).__name__ == "BasicTransformerBlock")
    hook = block.norm1.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))

    def gradient(context) -> torch.Tensor:
        x = noise().requires_grad_()
        with context():
            (x0,), maps = model.denoise(x, sigma, [positive], control)
        assert {m.shape[1] for m in (*maps.self_attention.values(), *maps.cross_attention.values())} == {1}
        (x0.square().mean() + 1e3 * self_attention_loss(maps, reference)).backward()
        return x.grad

    plain = gradient(nullcontext)
    once = len(calls)
    torch.testing.assert_close(gradient(model.recomputing), plain)
    assert once == 1 and len(calls) == 3
    hook.remove()
    assert not model._recomputing and "forward" not in block.__dict__


def test_checkpointed_decoding_computes_each_block_again_and_gives_the_same_gradient(parts):
    _, autoencoder, _ = parts
    calls = []
    blocks = [m for m in autoencoder.vae.decoder.modules() if type(m).__name__ == "ResnetBlock2D"]
    hooks = [b.norm1.register_forward_pre_hook(lambda *_, i=i: calls.append(i)) for i, b in enumerate(blocks)]
    latent = noise(1, autoencoder.channels, 8, 8)

    def gradient(decode) -> torch.Tensor:
        z = latent.clone().requires_grad_()
        decode(z).square().mean().backward()
        return z.grad

    plain = gradient(autoencoder.decode)
    torch.testing.assert_close(gradient(autoencoder.decode_checkpointed), plain)
    without, first, again = calls[: len(blocks)], calls[len(blocks) : -len(blocks)], calls[-len(blocks) :]
    assert without == first == again[::-1] and sorted(again) == list(range(len(blocks)))
    assert not any("forward" in block.__dict__ for block in blocks)
    for hook in hooks:
        hook.remove()


def test_conditionings_of_different_length(parts):
    model, _, encode = parts
    long, short = encode("a cat"), encode("dog")
    short = short.with_embeddings(short.embeddings[:, :9])
    together, _ = model.denoise(noise(), torch.tensor(1.0), [long, short])
    for x0, conditioning in zip(together, (long, short), strict=True):
        torch.testing.assert_close(x0, model.denoise(noise(), torch.tensor(1.0), [conditioning])[0][0])


def test_half_precision_weights_keep_float32_latents(tokenizer):
    model, _, encode = from_pipeline(make_pipeline(tokenizer))
    x, sigma, prompt = noise(), torch.tensor(1.0), encode("a cat")
    exact = model.denoise(x, sigma, [prompt])[0][0]
    name = model.name
    half = DiffusersModel(model.unet.to(torch.bfloat16), make_pipeline(tokenizer).scheduler.alphas_cumprod)
    rounded = half.denoise(x, sigma, [prompt])[0][0]
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.1
    assert name.startswith("diffusers-eps-")


def test_null_text_through_the_pipeline_parts(parts):
    model, autoencoder, encode = parts
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        latent = autoencoder.encode(image)
    assert latent.shape == (1, 4, 16, 16) and torch.equal(latent, autoencoder.encode(image))
    options = {"steps": 3, "start_sigma": 2.0, "guidance": 7.5, "inner_steps": 8, "learning_rate": 0.1}
    errors = []
    for method in ("ddim", "null-text"):
        record = result_of(invert(model, latent, encode("a cat"), encode(), method=method, **options))
        x = result_of(replay(model, record))
        errors.append((x - latent).square().mean().item())
    assert errors[1] < 0.5 * errors[0]


def test_autoencoder_round_trip_and_sizes(pipeline, parts):
    _, autoencoder, _ = parts
    assert (autoencoder.factor, autoencoder.channels) == (2, 4)
    picture = autoencoder.decode(noise(2, 4, 8, 12).requires_grad_())
    assert picture.shape == (2, 3, 16, 24) and picture.requires_grad
    expected = pipeline.vae.decode(noise(2, 4, 8, 12) / pipeline.vae.config.scaling_factor).sample / 2 + 0.5
    torch.testing.assert_close(picture, expected)
    with pytest.raises(ValueError, match="31x32"):
        autoencoder.encode(torch.zeros(1, 3, 32, 31))


def test_places_of_words(parts, caplog):
    _, _, encode = parts
    prompt = encode("cat on a bed", word="bed")
    assert prompt.embeddings.shape == (1, LENGTH, 24)
    assert prompt.content == (1, 2, 3, 4) and prompt.word == (4,)
    assert encode("").content == () and encode("").word is None
    assert encode("dog sees dog", word="dog").word == (1, len(encode("dog sees dog").content))
    assert encode("a zebra", word="zebra").word == encode("a zebra").content[1:]
    with pytest.raises(ValueError, match="does not contain the word 'dog'"):
        encode("a cat", word="dog")
    assert len(encode(" ".join(["cat"] * 30)).content) == LENGTH - 2
    assert "30 tokens" in caplog.text


def test_name_tells_models_apart(tokenizer, parts):
    model, autoencoder, _ = parts
    again, _, _ = from_pipeline(make_pipeline(tokenizer, "epsilon" if model.prediction == "eps" else "v_prediction"))
    assert again.name == model.name
    with torch.no_grad():
        for parameter in again.unet.parameters():
            parameter.add_(0.1)
    assert DiffusersModel(again.unet, torch.linspace(0.99, 0.01, 10)).name != model.name
    assert autoencoder.name.startswith("diffusers-kl-")


def test_timestep_is_the_nearest(parts):
    model, _, _ = parts
    assert [model.timestep(model.sigmas[t]) for t in (0, 1, 500, 999)] == [0, 1, 500, 999]
    assert model.timestep(0.041) == 1 and model.timestep(100.0) == 999


def test_other_layouts_are_refused(tokenizer):
    pipeline = make_pipeline(tokenizer)
    with pytest.raises(ValueError, match='"eps" or "v"'):
        DiffusersModel(pipeline.unet, pipeline.scheduler.alphas_cumprod, "x0")
    pipeline.scheduler.register_to_config(prediction_type="sample")
    with pytest.raises(ValueError, match="predicts 'sample'"):
        from_pipeline(pipeline)
    pipeline.scheduler.register_to_config(prediction_type="epsilon")
    pipeline.unet.register_to_config(in_channels=9)
    with pytest.raises(ValueError, match="9 input"):
        from_pipeline(pipeline)


def test_core_imports_without_diffusers():
    code = (
        "import sys; sys.modules['diffusers'] = None; import onrw_core.stages.inversion, onrw_core.diffusion.attention"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
