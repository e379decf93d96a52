"""UNet of the embedded model: structure, attention seam, and the adapter to the library's contract."""

from __future__ import annotations

import pytest
import torch

from onrw_core.diffusion.model import AttentionControl, Conditioning
from onrw_core.mini import MiniModel
from onrw_core.mini.diffusion import TIMESTEPS, alphas_cumprod, noised, velocity
from onrw_core.mini.unet import UNet, UNetConfig

SMALL = UNetConfig(channels=4, width=32, multiples=(1, 2, 2), head_channels=32, context=16)


@pytest.fixture(scope="module")
def model() -> MiniModel:
    torch.manual_seed(0)
    unet = UNet(SMALL)
    for parameter in unet.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return MiniModel(unet.eval().requires_grad_(False))


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 8, 12, generator=generator) * 3
    prompts = [Conditioning(torch.randn(1, 6, 16, generator=generator)) for _ in range(2)]
    return x, torch.tensor(2.5), prompts


def everything(kind: str, tokens: int) -> bool:
    return True


def test_recording_changes_nothing_and_maps_are_probabilities(model, inputs):
    x, sigma, prompts = inputs
    plain, none = model.denoise(x, sigma, prompts)
    probed, maps = model.denoise(x, sigma, prompts, AttentionControl(everything))
    assert all(torch.equal(a, b) for a, b in zip(plain, probed, strict=True))
    assert not none.self_attention and not none.cross_attention
    assert len(maps.self_attention) == len(maps.cross_attention) == 7
    for name, weights in (maps.self_attention | maps.cross_attention).items():
        height, width = maps.sizes[name]
        assert weights.shape[0] == len(x) and weights.shape[2] == height * width
        assert torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-5)
    assert {weights.shape[-1] for weights in maps.cross_attention.values()} == {6}
    assert set(maps.sizes.values()) == {(4, 6), (2, 3)}


def test_record_rule_selects(model, inputs):
    x, sigma, prompts = inputs
    rule = AttentionControl(lambda kind, tokens: kind == "self" and tokens <= 6)
    maps = model.denoise(x, sigma, prompts[:1], rule)[1]
    assert not maps.cross_attention and {size for size in maps.sizes.values()} == {(2, 3)}


def test_injection_replaces_the_first_conditioning_only(model, inputs):
    x, sigma, prompts = inputs
    plain, maps = model.denoise(x, sigma, prompts, AttentionControl(everything))
    same, _ = model.denoise(x, sigma, prompts, AttentionControl(lambda kind, tokens: False, maps))
    assert torch.allclose(same[0], plain[0], atol=1e-4) and torch.equal(same[1], plain[1])
    uniform = {name: torch.full_like(value, 1 / value.shape[-1]) for name, value in maps.self_attention.items()}
    flat = type(maps)(self_attention=uniform)
    other, recorded = model.denoise(x, sigma, prompts, AttentionControl(everything, flat))
    assert (other[0] - plain[0]).abs().max() > 1e-4 and torch.equal(other[1], plain[1])
    assert torch.equal(next(iter(recorded.self_attention.values())), next(iter(uniform.values())))
    with pytest.raises(ValueError, match="same latent size"):
        model.denoise(x[..., :8], sigma, prompts, AttentionControl(everything, flat))


def test_batch_of_conditionings_equals_single_calls(model, inputs):
    x, sigma, prompts = inputs
    together, _ = model.denoise(x, sigma, prompts)
    for prompt, expected in zip(prompts, together, strict=True):
        assert torch.allclose(model.denoise(x, sigma, [prompt])[0][0], expected, atol=1e-4)


def test_denoise_is_v_prediction(model, inputs):
    x, _, prompts = inputs
    timestep = 600
    alpha = alphas_cumprod()[timestep]
    raw = model.unet(x * alpha.sqrt(), torch.full((2,), float(timestep)), prompts[0].embeddings.expand(2, -1, -1))
    expected = alpha.sqrt() * (x * alpha.sqrt()) - (1 - alpha).sqrt() * raw
    assert torch.allclose(model.denoise(x, model.sigmas[timestep], prompts[:1])[0][0], expected, atol=1e-4)


def test_timesteps_follow_sigmas(model):
    for timestep in (0, 1, 500, TIMESTEPS - 1):
        assert model.timestep(model.sigmas[timestep]) == timestep
    assert model.timestep(torch.tensor(1e-4)) == 0 and model.timestep(torch.tensor(99.0)) == TIMESTEPS - 1


def test_gradients_reach_latent_and_embeddings(model, inputs):
    x, sigma, prompts = inputs
    x = x.requires_grad_()
    embeddings = prompts[0].embeddings.clone().requires_grad_()
    (x0,), maps = model.denoise(x, sigma, [Conditioning(embeddings)], AttentionControl(everything))
    (x0.square().mean() + sum(value.square().mean() for value in maps.self_attention.values())).backward()
    assert x.grad.abs().sum() > 0 and embeddings.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.unet.parameters())


def test_velocity_restores_the_latent():
    generator = torch.Generator().manual_seed(2)
    x0, noise = torch.randn(2, 3, 4, 4, generator=generator), torch.randn(2, 3, 4, 4, generator=generator)
    alphas = alphas_cumprod()[[3, 900]]
    a = alphas[:, None, None, None]
    z, v = noised(x0, noise, alphas), velocity(x0, noise, alphas)
    assert torch.allclose(a.sqrt() * z - (1 - a).sqrt() * v, x0, atol=1e-5)


def test_new_network_predicts_nothing():
    unet = UNet(SMALL)
    out = unet(torch.randn(1, 4, 8, 8), torch.tensor([5.0]), torch.randn(1, 6, 16))
    assert out.shape == (1, 4, 8, 8) and not out.any()


def test_configuration_survives_json():
    assert UNetConfig.from_dict({**SMALL.to_dict(), "multiples": [1, 2, 2]}) == SMALL
    assert SMALL.comfy()["transformer_depth_output"] == [0, 0, 1, 1, 1, 1]
