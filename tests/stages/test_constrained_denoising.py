"""Constrained denoising on stub models whose attention maps are known."""

from dataclasses import replace

import pytest
import torch

from onrw_core.diffusion.attention import pseudo_mask, self_attention_loss, sharpened
from onrw_core.diffusion.model import AttentionMaps
from onrw_core.stages.constrained_denoising import Constraint, denoise, perturbed, replay_original
from onrw_core.stages.inversion import invert
from onrw_core.stages.progress import result_of

from ..dummies import DummyModel, prompt

SIDE = 32  # of the latent: self-attention at 16 x 16 takes part in the constraint, cross-attention at 8 x 8 in masks


class Attentive(DummyModel):
    """A dummy whose maps depend on the noise level and on the latent, so that every step and branch has its own."""

    def denoise(self, x, sigma, conditionings, control=None):
        results, _ = super().denoise(x, sigma, conditionings)
        if control is None:
            return results, AttentionMaps()
        generator = torch.Generator().manual_seed(int(1000 * float(sigma)))
        maps = AttentionMaps({}, {}, {"self": (16, 16), "cross": (8, 8)})
        if control.record("self", 256):
            logits = torch.randn(1, 1, 256, 256, generator=generator) + x.mean()
            logits = logits + torch.nn.functional.adaptive_avg_pool2d(x[:, :1], 16).flatten(1)[:, None, None]
            maps.self_attention["self"] = logits.softmax(-1)
        if control.record("cross", 64):
            logits = 3 * torch.randn(1, 1, 64, 6, generator=generator)
            maps.cross_attention["cross"] = logits.softmax(-1)
        return results, maps


@pytest.fixture(scope="module")
def model():
    return Attentive()


@pytest.fixture(scope="module")
def inversion(model):
    latent = torch.randn(1, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(7))
    return result_of(invert(model, latent, prompt(1), prompt(2), steps=3, start_sigma=6.0))


def maps_of(model, inversion, step):
    """Maps of one step of the original branch, recorded whole."""
    from onrw_core.diffusion.model import AttentionControl
    from onrw_core.stages.inversion import replay_step

    x = inversion.latents[0]
    for i in range(step + 1):
        x, maps = replay_step(model, inversion, i, x, control=AttentionControl(lambda *_: True, mean=True))
    return maps


def test_pseudo_masks_are_weighed_by_the_images_share_of_variance(model, inversion):
    masks = torch.stack([pseudo_mask(maps_of(model, inversion, i), inversion.positive, (SIDE, SIDE)) for i in range(3)])
    share = 1 / (1 + inversion.sigmas[:-1] ** 2)
    assert share[0] < 0.2 * share[-1]  # an even mean would be another mask
    expected = sharpened(torch.einsum("i,ibchw->bchw", share / share.sum(), masks))
    soft = replay_original(model, inversion, Constraint(mask="soft")).mask
    torch.testing.assert_close(soft, expected)
    assert not torch.allclose(soft, sharpened(masks.mean(0)), atol=0.02)
    hard = replay_original(model, inversion, Constraint(mask="hard")).mask
    assert torch.equal(hard, (expected > 0.5).float())


def test_only_what_the_constraint_needs_is_recorded(model, inversion):
    nothing = replay_original(model, inversion, Constraint())
    assert (nothing.reference, nothing.inject, nothing.mask) == ([], [], None) and nothing.control(0) is None
    held = replay_original(model, inversion, Constraint(attention=True))
    assert len(held.reference) == 3 and not held.inject and held.mask is None
    assert all(not maps.cross_attention for maps in held.reference)
    control = held.control(1)
    assert control.record("self", 256) and not control.record("self", 1024) and not control.record("cross", 64)
    assert control.inject is None
    injected = replay_original(model, inversion, Constraint(inject=True))
    assert len(injected.inject) == 3 and not injected.reference
    assert injected.control(2).inject is injected.inject[2] and not injected.control(2).record("self", 256)


def test_the_attention_loss_is_the_mean_over_steps(model, inversion):
    original = replay_original(model, inversion, Constraint(attention=True))
    same, loss = denoise(model, inversion, inversion.latents[0], original)
    assert torch.equal(same, original.latent) and loss.item() == pytest.approx(0, abs=1e-9)
    delta = torch.randn(inversion.latents[0].shape, generator=torch.Generator().manual_seed(1))
    x = perturbed(inversion, delta)
    moved, loss = denoise(model, inversion, x, original)
    assert not torch.allclose(moved, original.latent)
    steps = []
    from onrw_core.stages.inversion import replay_step

    for i in range(3):
        x, maps = replay_step(model, inversion, i, x, control=original.control(i))
        steps.append(self_attention_loss(maps, original.reference[i]))
    assert len({round(step.item(), 12) for step in steps}) == 3
    torch.testing.assert_close(loss, torch.stack(steps).mean())


def test_delta_is_given_in_units_of_the_noise(inversion):
    delta = torch.ones_like(inversion.latents[0])
    scale = (1 + inversion.sigmas[0] ** 2).sqrt()
    torch.testing.assert_close(perturbed(inversion, delta), inversion.latents[0] + scale)
    assert torch.equal(perturbed(inversion, 0 * delta), inversion.latents[0])


def test_a_prompt_without_words_restricts_nothing(model, inversion):
    bare = replace(inversion, positive=replace(inversion.positive, content=()))
    mask = replay_original(model, bare, Constraint(mask="soft")).mask
    assert torch.equal(mask, torch.ones(1, 1, SIDE, SIDE))
