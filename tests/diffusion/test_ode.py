import math

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler

from onrw_core.diffusion.ode import euler, integrate, inverse_step, latent_scale, schedule, sigmas_from_alphas_cumprod

from ..dummies import SCALED_LINEAR, DummyModel, alphas_cumprod, prompt

SIGMAS = sigmas_from_alphas_cumprod(alphas_cumprod())
PREDICTION = {"eps": "epsilon", "v": "v_prediction"}
SCHEDULER = {**SCALED_LINEAR, "clip_sample": False, "set_alpha_to_one": False, "timestep_spacing": "trailing"}


def latent(seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def denoiser(model: DummyModel):
    return lambda x, sigma: model.denoise(x, sigma, [prompt(1)])[0][0]


def variance_preserving(model: DummyModel, scheduler, z: torch.Tensor) -> torch.Tensor:
    """diffusers' loop on the same network."""
    sigmas = sigmas_from_alphas_cumprod(scheduler.alphas_cumprod)
    for t in scheduler.timesteps:
        z = scheduler.step(model.raw(z, sigmas[t], prompt(1).embeddings), t, z).prev_sample
    return z


def test_sigmas_of_stable_diffusion():
    assert SIGMAS[0].item() == pytest.approx(0.0292, abs=1e-4)
    assert SIGMAS[1].item() == pytest.approx(0.0413, abs=1e-4)
    assert SIGMAS[-1].item() == pytest.approx(14.61, abs=0.01)
    assert (SIGMAS.diff() > 0).all()


def test_zero_terminal_snr_stays_finite():
    alphas = alphas_cumprod()
    alphas[-1] = 0
    sigmas = sigmas_from_alphas_cumprod(alphas)
    assert sigmas.isfinite().all() and sigmas[-1] > 1000


@pytest.mark.parametrize("steps", [1, 2, 3, 16, 20, 50, 120, 1000])
def test_schedule_has_the_trailing_timesteps_of_ddim(steps):
    scheduler = DDIMScheduler(**SCHEDULER)
    scheduler.set_timesteps(steps)
    expected = torch.cat([SIGMAS[scheduler.timesteps], SIGMAS[:1]])
    levels = schedule(SIGMAS, steps)
    if steps < 1000:
        assert torch.equal(levels, expected)
    else:  # 999 intervals are not enough for 1000 steps between trained levels
        torch.testing.assert_close(levels, expected, rtol=0.5, atol=0)


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
@pytest.mark.parametrize("start", [0.0413, 0.041, 0.03, 0.3, 2.0, 14.61])
def test_schedule_from_a_start_sigma(steps, start):
    levels = schedule(SIGMAS, steps, start)
    assert levels.shape == (steps + 1,)
    assert levels[0].item() == pytest.approx(start, rel=1e-5)
    assert levels[-1] == SIGMAS[0]
    assert (levels.diff() < 0).all()


def test_schedule_of_the_reference_preset():
    torch.testing.assert_close(schedule(SIGMAS, 1, 0.041), torch.tensor([0.041, 0.0292]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("steps, start", [(0, None), (1001, None), (4, 0.01), (4, 20.0), (4, -1.0)])
def test_schedule_refuses(steps, start):
    with pytest.raises(ValueError, match="start_sigma is|steps is"):
        schedule(SIGMAS, steps, start)


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("steps", [5, 20])
def test_sampling_equals_ddim(prediction, steps):
    model = DummyModel(prediction)
    scheduler = DDIMScheduler(**SCHEDULER, prediction_type=PREDICTION[prediction])
    scheduler.set_timesteps(steps)
    expected = variance_preserving(model, scheduler, latent())
    sigmas = schedule(model.sigmas, steps)
    *_, (last, x) = integrate(denoiser(model), latent() * latent_scale(sigmas[0]), sigmas)
    assert last == steps
    torch.testing.assert_close(x / latent_scale(sigmas[-1]), expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("steps", [5, 20])
def test_target_convention_equals_ddim_inverse(prediction, steps):
    model = DummyModel(prediction)
    scheduler = DDIMInverseScheduler(**SCHEDULER, prediction_type=PREDICTION[prediction])
    scheduler.set_timesteps(steps)
    expected = variance_preserving(model, scheduler, latent())
    sigmas = schedule(model.sigmas, steps).flip(0)
    start = latent() * latent_scale(sigmas[0])
    *_, (_, x) = integrate(denoiser(model), start, sigmas, at="target", prediction=prediction)
    torch.testing.assert_close(x / latent_scale(sigmas[-1]), expected, rtol=2e-4, atol=2e-5)
    *_, (_, source) = integrate(denoiser(model), start, sigmas, prediction=prediction)
    assert not torch.allclose(source, x, rtol=1e-2)


@pytest.mark.parametrize("prediction", ["eps", "v", "flow"])
@pytest.mark.parametrize("at", ["source", "target"])
def test_sampling_retraces_inversion_in_the_limit(prediction, at):
    model = DummyModel(prediction)
    errors = []
    for steps in (25, 100):
        sigmas = schedule(model.sigmas, steps, 3.0)
        *_, (_, noise) = integrate(denoiser(model), latent(), sigmas.flip(0), at=at, prediction=model.prediction)
        *_, (_, back) = integrate(denoiser(model), noise, sigmas)
        errors.append((back - latent()).square().mean().sqrt().item())
    assert errors[1] < 0.45 * errors[0] < 0.45


def test_euler_is_exact_on_a_straight_path():
    x0, eps, sigma, sigma_next = latent(1), latent(2), torch.tensor(0.8), torch.tensor(0.3)
    torch.testing.assert_close(euler(x0 + sigma * eps, x0, sigma, sigma_next), x0 + sigma_next * eps)


def test_the_eps_form_of_a_flow_model_takes_the_same_steps():
    model, s, s_next = DummyModel("flow"), torch.tensor(0.8), torch.tensor(0.3)
    y = (1 - s) * latent(1) + s * latent(2)
    expected = y + (s_next - s) * model.raw(y, s, prompt(1).embeddings)
    sigma, sigma_next = s / (1 - s), s_next / (1 - s_next)
    x = y / (1 - s)
    found = euler(x, denoiser(model)(x, sigma), sigma, sigma_next)
    torch.testing.assert_close(found * (1 - s_next), expected)


def test_latent_scale_is_the_standard_deviation():
    assert latent_scale(2.0).item() == pytest.approx(math.sqrt(5))


def test_integrate_is_lazy_and_differentiable():
    model = DummyModel()
    x = latent().requires_grad_()
    path = integrate(denoiser(model), x, schedule(model.sigmas, 3, 1.0))
    assert model.calls == 0
    *_, (_, result) = path
    result.sum().backward()
    assert model.calls == 3 and x.grad.abs().sum() > 0


def test_unknown_names_are_refused():
    model = DummyModel()
    step = (denoiser(model), latent(), torch.tensor(0.1), torch.tensor(0.2))
    with pytest.raises(ValueError, match="source, target"):
        inverse_step(*step, at="middle")
    with pytest.raises(ValueError, match="prediction is 'x0'"):
        inverse_step(*step, at="target", prediction="x0")
